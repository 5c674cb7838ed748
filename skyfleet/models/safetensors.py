"""The header of a safetensors file: names, dtypes and shapes of its tensors, without the weights.

A file is 8 bytes (little-endian length of the header), the header (JSON), and the tensors' bytes without gaps. Source:
the safetensors project, README, "Format".
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

PREFIX_BYTES: Final = 8
#: Hugging Face's own readers refuse longer ones.
_LONGEST_HEADER: Final = 25_000_000

_BITS: Final[dict[str, int]] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
#: The catalog's names of the dtypes that weights are kept in.
_NAMES: Final = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "F4": "fp4",
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), "fp8"),
}
#: What quantised weights come with, by the last part of its name: how to read them, not weights themselves.
_BESIDE_WEIGHTS: Final = (
    *("scales", "qzeros", "g_idx", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_zero_point"),
    *("weight_shape", "weight_g_idx", "weight_global_scale", "input_scale", "input_global_scale", "k_scale", "v_scale"),
    *("absmax", "quant_map", "nested_absmax", "nested_quant_map", "SCB", "weight_format", "bitsandbytes__nf4"),
    *("bitsandbytes__fp4", "inv_freq"),
)


class SafetensorsError(ValueError):
    """It is no sound safetensors file; the text says why."""


@dataclass(frozen=True)
class Tensor:
    """One tensor as the header describes it."""

    name: str
    dtype: str
    elements: int


def header_bytes(prefix: bytes, file_bytes: int) -> int:
    """How long the header is that follows the first 8 bytes of a file of that size."""
    if file_bytes < PREFIX_BYTES or len(prefix) < PREFIX_BYTES:
        raise SafetensorsError(f"is truncated: {file_bytes} bytes")
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if not 2 <= length <= _LONGEST_HEADER:
        raise SafetensorsError(f"is no safetensors file: its header would be {length} bytes long")
    if PREFIX_BYTES + length > file_bytes:
        raise SafetensorsError(
            f"is truncated: it has {file_bytes} bytes, and its header alone takes {PREFIX_BYTES + length}"
        )
    return length


def read_header(header: bytes, file_bytes: int) -> list[Tensor]:
    """The tensors that a header describes. Raises `SafetensorsError`, also where the file's size does not fit them."""
    try:
        described: Any = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise SafetensorsError(f"has a header that is no JSON: {error}") from error
    if not isinstance(described, dict):
        raise SafetensorsError("has a header that is no JSON object")
    tensors, end = [], 0
    for name, facts in described.items():
        if name == "__metadata__":
            continue
        tensor, stop = _tensor(name, facts)
        tensors.append(tensor)
        end = max(end, stop)
    expected = PREFIX_BYTES + len(header) + end
    if file_bytes != expected:
        what = "is truncated" if file_bytes < expected else "is longer than its tensors"
        raise SafetensorsError(f"{what}: it has {file_bytes} bytes, its header describes {expected}")
    return tensors


def _tensor(name: str, facts: Any) -> tuple[Tensor, int]:
    if not isinstance(facts, Mapping):
        raise SafetensorsError(f"describes the tensor {name!r} by what is no JSON object")
    dtype, shape, offsets = facts.get("dtype"), facts.get("shape"), facts.get("data_offsets")
    if not isinstance(dtype, str) or not dtype or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise SafetensorsError(f"describes the tensor {name!r} without a sound dtype, shape and place")
    begin, end = offsets
    elements = math.prod(shape)
    taken = (end - begin) * 8
    # Of a dtype that is not known here, an element takes a bit at least.
    if taken < 0 or (elements * _BITS[dtype] != taken if dtype in _BITS else elements > taken):
        raise SafetensorsError(f"gives the tensor {name!r} {end - begin} bytes, which its dtype and shape do not take")
    return Tensor(name, dtype, elements), end


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**63 for one in value
    )


def parameters_of(tensors: Iterable[Tensor], quantised_bits: int | None = None) -> int:
    """How many parameters the tensors hold.

    `quantised_bits` is given where weights are quantised: several of them then share one integer (AWQ and GPTQ keep
    eight of 4 bits in 32; bitsandbytes, MXFP4 and NVFP4 two in 8), and what only tells how to read them is left out.
    """
    count = 0
    for tensor in tensors:
        whole = tensor.dtype[0] in "IU"
        last = tensor.name.rpartition(".")[2]
        if last in _BESIDE_WEIGHTS or tensor.dtype == "BOOL" or tensor.dtype == "F8_E8M0" or last.endswith("_scales"):
            continue
        if quantised_bits is None:
            count += 0 if whole else tensor.elements  # whole numbers are buffers, such as positions
        else:
            count += tensor.elements * (max(1, _BITS.get(tensor.dtype, 8) // quantised_bits) if whole else 1)
    return count


def dtype_of(tensors: Iterable[Tensor]) -> str | None:
    """What most bytes of the weights are kept in; None where there are none, or in a dtype without a name here."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.elements * _BITS.get(tensor.dtype, 8)
    return _NAMES.get(sizes.most_common(1)[0][0]) if sizes else None
