"""A model's `config.json`, as Hugging Face transformers writes it: what serving it depends on.

The names of fields differ by family; the first that is there counts. Sources: the configuration classes of
transformers, and how vLLM reads them (`vllm/config/model.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel

Dtype = Literal["float64", "float32", "bfloat16", "float16", "fp8", "int8", "int4", "fp4", "mxfp4"]

#: Bits of one element, by the name that the catalog gives a dtype.
DTYPE_BITS: Final[dict[str, int]] = {
    "float64": 64,
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "fp8": 8,
    "int8": 8,
    "int4": 4,
    "fp4": 4,
    "mxfp4": 4,
}

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_HEAD_SIZE = ("head_dim", "kv_channels")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_INTERMEDIATE = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
#: Where a multi-modal model keeps the configuration of its language model.
_TEXT_PARTS = ("text_config", "llm_config", "language_config")

#: Larger than anything of its kind; keeps nonsense out of the arithmetic and of the database.
_MOST: Final = 2_000_000_000


class ConfigError(ValueError):
    """It is no model's configuration, or not a sound one; the text says why."""


class KvCache(BaseModel):
    """What the key-value cache takes, bytes for one token of one sequence.

    `windowed_bytes_per_token` is the part of `bytes_per_token` in layers that look back `window_tokens` at most.
    """

    bytes_per_token: int
    windowed_bytes_per_token: int = 0
    window_tokens: int | None = None

    def sequence_bytes(self, tokens: int) -> int:
        """What one sequence of that many tokens takes."""
        windowed = min(tokens, self.window_tokens) if self.window_tokens else tokens
        return (self.bytes_per_token - self.windowed_bytes_per_token) * tokens + (
            self.windowed_bytes_per_token * windowed
        )


class Widths(BaseModel):
    """How wide a model's layers are, which decides what activations take. Counts of elements."""

    hidden: int
    intermediate: int  # of all experts that one token goes through, together
    vocabulary: int
    experts_per_token: int = 0  # 0: not a mixture of experts


class ModelConfig(BaseModel):
    """What a `config.json` says. None: it does not say."""

    family: str
    dtype: str | None = None
    quantised: bool = False
    context_length: int | None = None
    kv_cache: KvCache | None = None
    widths: Widths | None = None


def read_config(config: object) -> ModelConfig:
    """What a parsed `config.json` says. Raises `ConfigError` where it cannot be one of a model."""
    if not isinstance(config, Mapping):
        raise ConfigError("it is no JSON object")
    family = _family(config)
    text = next((part for name in _TEXT_PARTS if isinstance(part := config.get(name), Mapping)), {})
    merged = {**config, **text}
    quantisation = next(
        (
            part
            for holder in (config, text)
            for name in ("quantization_config", "compression_config")
            if isinstance(part := holder.get(name), Mapping)
        ),
        None,
    )
    dtype = _dtype_name(merged.get("dtype") or merged.get("torch_dtype") or config.get("torch_dtype"))
    return ModelConfig(
        family=family,
        dtype=dtype if quantisation is None else _quantised_dtype(quantisation),
        quantised=quantisation is not None,
        context_length=_context_length(merged),
        kv_cache=_kv_cache(merged, 1 if quantisation is not None and _cache_is_8_bit(quantisation) else 2),
        widths=_widths(merged),
    )


# --- fields -----------------------------------------------------------------------------------------------------


def _whole(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of the fields that has a value; `ConfigError` when that is no positive whole number."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
            raise ConfigError(f"{name} is {_shown(value)}, not a positive whole number")
        return value
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


def _family(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if isinstance(kind, str) and kind.strip():
        return kind.strip()[:100]
    if "_class_name" in config:
        raise ConfigError("it describes a part of a diffusion pipeline, not a language model")
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        # LlamaForCausalLM → llama
        return architectures[0].partition("For")[0].removesuffix("Model").lower()[:100] or "unknown"
    raise ConfigError("it has neither model_type nor architectures: not a model's configuration")


def _dtype_name(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    name = value.removeprefix("torch.")
    name = {"float": "float32", "half": "float16", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8"}.get(name, name)
    return name if name in DTYPE_BITS else None


def _quantised_dtype(quantisation: Mapping[str, Any]) -> str | None:
    """What most weights are stored as. None for a method that is not known here."""
    method = str(quantisation.get("quant_method", "")).lower()
    bits = quantisation.get("bits", quantisation.get("w_bit"))
    if method in ("awq", "gptq", "auto-round", "autoround", "gptq_marlin", "awq_marlin"):
        return {4: "int4", 8: "int8"}.get(bits if isinstance(bits, int) else 4)
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if method == "bitsandbytes":
        return "int4" if quantisation.get("load_in_4bit") else "int8"
    algorithm = str(quantisation.get("quant_algo", "")).upper()
    if method == "modelopt" or algorithm:
        return "fp4" if "FP4" in algorithm else "fp8" if "FP8" in algorithm else None
    groups = quantisation.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            name = f"{'fp' if weights.get('type') == 'float' else 'int'}{weights.get('num_bits')}"
            return name if name in DTYPE_BITS else None
    return None


def _cache_is_8_bit(quantisation: Mapping[str, Any]) -> bool:
    scheme = quantisation.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        return scheme.get("num_bits") == 8
    return str(quantisation.get("kv_cache_quant_algo", "")).upper() == "FP8"


def _context_length(config: Mapping[str, Any]) -> int | None:
    """The longest context, as vLLM derives it: scaled RoPE multiplies, unless the figure has it in it already."""
    length = _whole(config, *_CONTEXT)
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if length is None or not isinstance(scaling, Mapping):
        return length
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    if kind in (None, "default", "mrope", "su", "longrope", "llama3") or factor is None:
        return length
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= _MOST:
        raise ConfigError(f"rope_scaling.factor is {_shown(factor)}, not a positive number")
    if kind == "yarn":
        original = _whole(scaling, "original_max_position_embeddings")
        # Without the original figure nobody can tell whether the other has the factor in it.
        return length if original is None else max(length, min(_MOST, int(original * factor)))
    return min(_MOST, int(length * factor))


# --- attention --------------------------------------------------------------------------------------------------


def _kv_cache(config: Mapping[str, Any], element_bytes: int) -> KvCache | None:
    layers, heads, hidden = _whole(config, *_LAYERS), _whole(config, *_HEADS), _whole(config, *_HIDDEN)
    if layers is None:
        return None
    latent, rope = _whole(config, "kv_lora_rank"), _whole(config, "qk_rope_head_dim")
    if latent is not None and rope is not None:
        # Multi-head latent attention keeps one compressed vector and one shared rotary key, not keys and values for
        # each head (DeepSeek-V2, arXiv 2405.04434, section 2.1).
        return KvCache(bytes_per_token=layers * (latent + rope) * element_bytes)
    if heads is None:
        return None
    size = _whole(config, *_HEAD_SIZE) or (hidden // heads if hidden else 0)
    kv_heads = _kv_heads(config, heads)
    if not size or kv_heads is None:
        return None
    layer_bytes = 2 * kv_heads * size * element_bytes  # keys and values
    caching, windowed, window = _layers(config, layers)
    return KvCache(
        bytes_per_token=caching * layer_bytes,
        windowed_bytes_per_token=windowed * layer_bytes,
        window_tokens=window if windowed else None,
    )


def _kv_heads(config: Mapping[str, Any], heads: int) -> int | None:
    """Heads that keep keys and values of their own: fewer than heads that ask, where groups share them."""
    if config.get("multi_query") is True and config.get("new_decoder_architecture") is not True:
        return 1  # Falcon, GPTBigCode
    if config.get("multi_query_attention") is True:
        return _whole(config, "multi_query_group_num")  # ChatGLM
    inner = config.get("attn_config")
    if isinstance(inner, Mapping) and (shared := _whole(inner, "kv_n_heads")) is not None:
        return shared  # MPT, DBRX
    if isinstance(config.get(_KV_HEADS[0]), list):
        return None  # a figure for each layer
    return _whole(config, *_KV_HEADS) or heads


def _layers(config: Mapping[str, Any], layers: int) -> tuple[int, int, int | None]:
    """How many layers cache, how many of those look back no further than a window, and that window in tokens."""
    window = None if config.get("use_sliding_window") is False else _whole(config, "sliding_window")
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds:
        sliding = kinds.count("sliding_attention") if window else 0
        # State-space, convolution and linear-attention layers keep a state of fixed size.
        caching = sum(1 for kind in kinds if isinstance(kind, str) and kind.endswith("attention")) - kinds.count(
            "linear_attention"
        )
        return caching, sliding, window
    if window is None:
        return layers, 0, None
    family = str(config.get("model_type", ""))
    if family == "gemma2":
        return layers, layers - layers // 2, window
    pattern = _whole(config, "sliding_window_pattern") or (6 if family.startswith("gemma3") else None)
    if pattern is not None:  # every so many layers, one sees everything
        return layers, layers - layers // pattern, window
    if config.get("use_sliding_window") is True:  # Qwen: from this layer on
        return layers, max(0, layers - (_whole(config, "max_window_layers") or 0)), window
    return layers, layers, window


def _widths(config: Mapping[str, Any]) -> Widths | None:
    hidden = _whole(config, *_HIDDEN)
    if hidden is None:
        return None
    experts = _whole(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk") or 0
    intermediate = _whole(config, "moe_intermediate_size") if experts else None
    intermediate = intermediate or _whole(config, *_INTERMEDIATE) or 4 * hidden  # 4: GPT-2's, where it says nothing
    return Widths(
        hidden=hidden,
        intermediate=intermediate * max(1, experts),
        vocabulary=_whole(config, "vocab_size") or 0,
        experts_per_token=experts,
    )
