"""How much GPU memory a model takes."""

from __future__ import annotations

import math
from typing import Final

_BYTES_PER_PARAMETER: Final = 2  # bfloat16 and float16, in which open models are published
_OVERHEAD: Final = 1.2


def vram_required_gb(parameters: int) -> float:
    """GPU memory (GB, 10^9 bytes, rounded up to a tenth) that serving a model of that many parameters takes.

    `parameters × 2 bytes × 1.2`: weights in 16 bits, and a fifth on top for the KV cache, activations and the CUDA
    context. Source: the rule of thumb `M = P × 4 B / (32 / Q) × 1.2` with Q = 16 bits, as published by Substratus,
    "Calculating GPU memory for serving LLMs" (2023). A quantised model takes less: register it with its own figure.
    """
    return math.ceil(parameters * _BYTES_PER_PARAMETER * _OVERHEAD / 1e8) / 10
