"""How much GPU memory serving a model takes.

Sizes are GB as GPU makers and clouds count GPU memory: 2^30 bytes. A 24 GB card has 24 of these at most.
"""

from __future__ import annotations

import math
from typing import Final

from pydantic import BaseModel, Field

from skyfleet.domain.model_config import DTYPE_BITS, KvCache, ModelConfig, Widths

_GB: Final = 2**30

#: For how much use an estimate is made if nobody says: two sequences at once of this many tokens (or of the model's
#: longest context, if that is shorter). The least at which a server is of use; more use needs more cache.
DEFAULT_CONTEXT_TOKENS: Final = 8_192
DEFAULT_SEQUENCES: Final = 2

#: vLLM's `--gpu-memory-utilization`, its default: what it takes of a GPU. The rest is left to CUDA graphs and drivers.
GPU_MEMORY_UTILIZATION: Final = 0.9

#: What vLLM measures activations with: `--max-num-batched-tokens` and `--max-num-seqs`, by their defaults.
_BATCHED_TOKENS: Final = 8_192
_BATCHED_SEQUENCES: Final = 256
#: CUDA context and communication buffers: vLLM's log calls it non-torch memory, 0.12 to 0.2 GiB on one GPU.
_RUNTIME_BYTES: Final = _GB // 4
#: In which open models are published, where nobody says otherwise.
_USUAL_BITS: Final = 16
_RULE_OF_THUMB: Final = 0.2

_FORMULA: Final = (
    "(weights + KV cache + overhead) / gpu_memory_utilization; "
    "KV cache = sequences x context x bytes per token, bytes per token = 2 x layers x KV heads x head size x bytes "
    "per element (layers with a sliding window: at most the window; latent attention: one compressed vector)"
)
_SOURCES: Final = [
    "KV cache: NVIDIA, Mastering LLM Techniques: Inference Optimization; DeepSeek-V2, arXiv 2405.04434, section 2.1",
    "Weights, activations, share of a GPU: vLLM, memory profiling (pull requests 10511 and 12126), Engine Arguments",
]
_ROUGH_FORMULA: Final = "weights x 1.2"
_ROUGH_SOURCES: Final = [
    "Hugging Face Accelerate, Model memory estimator; EleutherAI, Transformer Math 101: up to 20 % beside the weights"
]


class VramEstimate(BaseModel):
    """GPU memory that serving takes, term by term; all sizes in GB of 2^30 bytes.

    The cache is for `sequences` at once of `context_tokens` each. Where the model's shape is not known, there is no
    cache term: `overhead_gb` is a fifth of the weights, for all else together. It is an estimate for one GPU: of
    several that share a model, each has a part of weights and cache, and the whole overhead.
    """

    total_gb: float = Field(description="What a machine must have.")
    weights_gb: float
    kv_cache_gb: float | None = None
    overhead_gb: float = Field(description="Activations of the largest batch, logits, CUDA context.")
    gpu_memory_utilization: float = Field(default=1.0, description="Share of the GPU that the engine takes.")
    context_tokens: int | None = None
    sequences: int | None = None
    kv_cache: KvCache | None = None
    formula: str
    sources: list[str]

    def at(self, context_tokens: int, sequences: int) -> VramEstimate:
        """The same for another use. `ValueError` where the model's shape is not known."""
        if self.kv_cache is None:
            raise ValueError("the model's shape is not known: its estimate does not depend on context or concurrency")
        return _with_cache(self.weights_gb, self.overhead_gb, self.kv_cache, context_tokens, sequences)


def estimate_vram(
    weights_bytes: int,
    config: ModelConfig | None = None,
    *,
    context_tokens: int = DEFAULT_CONTEXT_TOKENS,
    sequences: int = DEFAULT_SEQUENCES,
) -> VramEstimate:
    """GPU memory for weights of that size, and for that much use; the model's own longest context is the limit.

    With the model's shape: `(weights + KV cache + overhead) / 0.9`, the formula and its sources being in the answer.
    The overhead is `T x (3 I + 4 H) x 2 + 2 x S x V x 4 + 0.25 GiB`: the widest moment of a layer in a batch of T =
    8,192 tokens (I: intermediate, H: hidden size; gate, up and their product, and the residual stream, 16 bits each),
    the float32 logits of S = 256 sequences over V words and a copy of them, and the CUDA context. For Llama 3 8B that
    is 1.40 GiB; vLLM's profiling logs 1.19 to 1.26 for activations and 0.12 to 0.2 beside PyTorch (see `_SOURCES`).
    Without it: the weights and a fifth.
    """
    weights_gb = weights_bytes / _GB
    if config is None or config.kv_cache is None or config.widths is None:
        overhead = weights_gb * _RULE_OF_THUMB
        return VramEstimate(
            total_gb=_up(weights_gb + overhead),
            weights_gb=_up(weights_gb, 3),
            overhead_gb=_up(overhead, 3),
            formula=_ROUGH_FORMULA,
            sources=_ROUGH_SOURCES,
        )
    tokens = min(context_tokens, config.context_length or context_tokens)
    return _with_cache(weights_gb, _overhead_bytes(config.widths) / _GB, config.kv_cache, tokens, sequences)


def _with_cache(weights_gb: float, overhead_gb: float, cache: KvCache, tokens: int, sequences: int) -> VramEstimate:
    # The total is of the terms as shown, so that the same question later has the same answer.
    weights, overhead = _up(weights_gb, 3), _up(overhead_gb, 3)
    kept = _up(cache.sequence_bytes(tokens) * sequences / _GB, 3)
    return VramEstimate(
        total_gb=_up((weights + kept + overhead) / GPU_MEMORY_UTILIZATION),
        weights_gb=weights,
        kv_cache_gb=kept,
        overhead_gb=overhead,
        gpu_memory_utilization=GPU_MEMORY_UTILIZATION,
        context_tokens=tokens,
        sequences=sequences,
        kv_cache=cache,
        formula=_FORMULA,
        sources=_SOURCES,
    )


def _overhead_bytes(widths: Widths) -> int:
    routed = widths.experts_per_token * widths.hidden  # each expert's output, before they are summed
    layer = _BATCHED_TOKENS * (3 * widths.intermediate + routed + 4 * widths.hidden) * 2
    logits = 2 * _BATCHED_SEQUENCES * widths.vocabulary * 4
    return layer + logits + _RUNTIME_BYTES


def _up(value: float, places: int = 1) -> float:
    """Rounded up, but not for what floating point adds; what is there at all is not rounded to nothing."""
    scale: int = 10**places
    return max(math.ceil(value * scale - 1e-6), int(value > 0)) / scale


def weights_bytes(parameters: int, dtype: str | None = None) -> int:
    """What that many parameters take; in 16 bits each if nobody says."""
    return math.ceil(parameters * DTYPE_BITS.get(dtype or "", _USUAL_BITS) / 8)


def gigabytes(size_bytes: int) -> float:
    """A size in GB of 2^30 bytes, to four digits."""
    return float(f"{size_bytes / _GB:.4g}")


def parameters_text(parameters: int | None) -> str:
    """A parameter count as people write it: 8.03B."""
    if parameters is None:
        return "unknown"
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= 0.9995 * scale:
            return f"{parameters / scale:.3g}{unit}"
    return str(parameters)
