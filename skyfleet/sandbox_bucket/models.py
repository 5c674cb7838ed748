"""Models of random weights: of the form of real ones, in files that their loaders read, and of no use."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any, Final

_README: Final = """# {name}

Random weights, written by `skyfleet up` to have a model to read from a bucket. It says nothing sensible, and has no
tokenizer.
"""

_LLAMA: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_MIXTRAL: Final[dict[str, Any]] = {
    **_LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}


def objects() -> Iterator[tuple[str, bytes]]:
    """Every object of the bucket: key and content."""
    for name, config, shards in (("tiny-llama-random", _LLAMA, 1), ("tiny-mixtral-random", _MIXTRAL, 2)):
        folder = f"sandbox/{name}/"
        yield f"{folder}README.md", _README.format(name=name).encode()
        yield f"{folder}config.json", json.dumps(config, indent=2).encode()
        for file, content in _weight_files(_shapes(config), shards):
            yield f"{folder}{file}", content


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama or Mixtral, by the names that transformers gives them."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shared = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for name, rows in (("q", hidden), ("k", shared), ("v", shared), ("o", hidden)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, hidden)
        if experts := config.get("num_local_experts"):
            shapes[f"{layer}.block_sparse_moe.gate.weight"] = (experts, hidden)
            for expert in range(experts):
                place = f"{layer}.block_sparse_moe.experts.{expert}"
                shapes |= {f"{place}.w1.weight": (inner, hidden), f"{place}.w3.weight": (inner, hidden)}
                shapes[f"{place}.w2.weight"] = (hidden, inner)
        else:
            shapes |= {f"{layer}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
            shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{layer}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def _weight_files(shapes: Mapping[str, tuple[int, ...]], shards: int) -> Iterator[tuple[str, bytes]]:
    if shards == 1:
        yield "model.safetensors", _safetensors(shapes)
        return
    names, size = list(shapes), math.ceil(len(shapes) / shards)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: shapes[name] for name in names[number * size : (number + 1) * size]}
        weight_map |= dict.fromkeys(part, file)
        yield file, _safetensors(part)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    yield "model.safetensors.index.json", json.dumps(index, indent=2).encode()


def _safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of random bfloat16 weights, normally distributed about 0 as fresh ones are."""
    # bfloat16 is the upper half of a float32.
    values = [struct.pack("<f", NormalDist(0, 0.02).inv_cdf((step + 0.5) / 256))[2:] for step in range(256)]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    weights = bytearray()
    for name, shape in shapes.items():
        begin = len(weights)
        chosen = random.Random(name).randbytes(math.prod(shape))  # noqa: S311 - the same at each start
        weights += b"".join([values[byte] for byte in chosen])
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, len(weights)]}
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)  # the weights begin on a multiple of 8
    return len(described).to_bytes(8, "little") + described + weights
