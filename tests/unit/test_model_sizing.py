"""What a model takes, against figures that others published, and at the edges."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfleet.domain.model_config import ConfigError, KvCache, read_config
from skyfleet.domain.sizing import (
    VramEstimate,
    estimate_vram,
    gigabytes,
    parameters_text,
    weights_bytes,
)

GB = 2**30


def llama(**changes: Any) -> dict[str, Any]:
    """Llama 3.1 8B's own configuration."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "torch_dtype": "bfloat16",
        **changes,
    }


QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "torch_dtype": "bfloat16",
}
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_experts_per_tok": 8,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("config", "per_token", "source"),
    [
        (llama(), 131_072, "32 layers of 8 KV heads of 128, 2 bytes: 128 KiB"),
        (llama(num_hidden_layers=80, hidden_size=8192, num_attention_heads=64), 327_680, "Llama 70B: 320 KiB"),
        (llama(num_key_value_heads=None), 524_288, "Llama 2 7B's attention, each head its own: 512 KiB"),
        (QWEN_7B, 57_344, "28 layers of 4 KV heads of 128: 56 KiB"),
        (MIXTRAL, 131_072, "the attention of Mistral 7B: 128 KiB"),
        (DEEPSEEK_V3, 70_272, "DeepSeek-V3, 61 layers of 512 + 64: 70.3 kB"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_cache_of_a_token(config: dict[str, Any], per_token: int, source: str) -> None:
    cache = read_config(config).kv_cache
    assert cache == KvCache(bytes_per_token=per_token)


def test_llama_8b_is_what_vllm_logs() -> None:
    """vLLM, pull request 10511: weights 14.96 GiB, activations 1.26 GiB; 12126: 0.16 GiB beside PyTorch."""
    found = estimate_vram(weights_bytes(8_030_261_248, "bfloat16"), read_config(llama()))
    assert found.weights_gb == pytest.approx(14.96, abs=0.01)
    assert found.overhead_gb == pytest.approx(1.26 + 0.16, rel=0.1)
    assert (found.context_tokens, found.sequences) == (8192, 2)
    assert found.kv_cache_gb == 2.0
    assert found.total_gb == 20.4  # fits a card of 24 GB, as it does in practice
    assert found.at(131_072, 1).kv_cache_gb == 16.0
    assert "layers" in found.formula
    assert found.sources


@pytest.mark.parametrize(
    ("parameters", "dtype", "size_gb"),
    [
        (8_030_261_248, "bfloat16", 14.96),  # 16.06 GB on its hub
        (7_615_616_512, "bfloat16", 14.19),
        (70_553_706_496, "bfloat16", 131.4),
        (46_702_792_704, "bfloat16", 86.99),  # Mixtral 8x7B: all experts are there
        (70_553_706_496, "fp8", 65.71),
        (70_553_706_496, "int4", 32.85),
        (1_000_000_000, None, 1.863),
    ],
)
def test_the_size_of_weights(parameters: int, dtype: str | None, size_gb: float) -> None:
    assert gigabytes(weights_bytes(parameters, dtype)) == size_gb


def test_a_model_of_several_cards() -> None:
    config = read_config(llama(num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64))
    found = estimate_vram(weights_bytes(70_553_706_496), config)
    assert 131.4 / 0.9 < found.total_gb < 160  # 2 x 80 GB serve it, one does not
    mixtral = estimate_vram(weights_bytes(46_702_792_704), read_config(MIXTRAL))
    assert 80 < mixtral.total_gb < 160


def test_without_the_shape_it_is_the_weights_and_a_fifth() -> None:
    found = estimate_vram(10 * GB)
    assert (found.total_gb, found.weights_gb, found.overhead_gb, found.kv_cache_gb) == (12.0, 10.0, 2.0, None)
    assert estimate_vram(1).total_gb == 0.1
    with pytest.raises(ValueError, match="shape is not known"):
        found.at(8192, 1)


def test_the_models_own_context_is_the_limit() -> None:
    found = estimate_vram(GB, read_config(llama(max_position_embeddings=2048, rope_scaling=None)))
    assert found.context_tokens == 2048


# --- windows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "windowed_layers", "window"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 32, 4096),
        ({"model_type": "gemma2", "sliding_window": 4096, "num_hidden_layers": 42}, 21, 4096),
        ({"model_type": "gemma3_text", "sliding_window": 512, "num_hidden_layers": 26}, 22, 512),
        ({"sliding_window": 1024, "sliding_window_pattern": 4}, 24, 1024),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 20}, 12, 4096),
        ({"sliding_window": 4096, "use_sliding_window": False}, 0, None),
        ({"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 16}, 16, 128),
    ],
)
def test_layers_that_look_back_no_further_than_a_window(
    changes: dict[str, Any], windowed_layers: int, window: int | None
) -> None:
    config = llama(**changes)
    cache = read_config(config).kv_cache
    assert cache is not None
    assert cache.bytes_per_token == config["num_hidden_layers"] * 4096
    assert (cache.windowed_bytes_per_token, cache.window_tokens) == (windowed_layers * 4096, window)
    if window:
        full = cache.bytes_per_token - cache.windowed_bytes_per_token
        assert cache.sequence_bytes(10 * window) == full * 10 * window + windowed_layers * 4096 * window
        assert cache.sequence_bytes(window) == cache.bytes_per_token * window


def test_only_attention_keeps_a_cache_that_grows() -> None:
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 8
    cache = read_config(llama(layer_types=kinds)).kv_cache
    assert cache is not None
    assert cache.bytes_per_token == 8 * 4096


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({"num_key_value_heads": None, "multi_query": True}, 1),
        ({"num_key_value_heads": None, "num_kv_heads": 4, "multi_query": True, "new_decoder_architecture": True}, 4),
        ({"num_key_value_heads": None, "multi_query_attention": True, "multi_query_group_num": 2}, 2),
        ({"num_key_value_heads": None, "attn_config": {"kv_n_heads": 8}}, 8),
    ],
    ids=["GPTBigCode", "Falcon 40B", "ChatGLM", "DBRX"],
)
def test_heads_that_share_keys_and_values(changes: dict[str, Any], heads: int) -> None:
    cache = read_config(llama(**changes)).kv_cache
    assert cache is not None
    assert cache.bytes_per_token == 32 * 2 * heads * 128 * 2


def test_names_of_older_families() -> None:
    found = read_config({"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024})
    assert found.kv_cache == KvCache(bytes_per_token=12 * 2 * 768 * 2)
    assert found.context_length == 1024
    assert found.widths is not None
    assert found.widths.intermediate == 4 * 768


def test_the_language_model_of_a_multi_modal_one() -> None:
    text = llama()
    found = read_config({"model_type": "llava", "vision_config": {"hidden_size": 1}, "text_config": text})
    assert (found.family, found.kv_cache) == ("llava", read_config(text).kv_cache)


# --- dtypes and contexts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantisation", "dtype"),
    [
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "awq", "w_bit": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "fp4"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
            "int4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
        ({"quant_method": "of tomorrow"}, None),
    ],
)
def test_quantised_weights(quantisation: dict[str, Any], dtype: str | None) -> None:
    found = read_config(llama(quantization_config=quantisation))
    assert (found.dtype, found.quantised) == (dtype, True)


def test_an_8_bit_cache_is_half_the_size() -> None:
    scheme = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    cache = read_config(llama(quantization_config=scheme)).kv_cache
    assert cache == KvCache(bytes_per_token=65_536)


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 131_072),  # llama3: the figure has the factor in it
        ({"rope_scaling": None}, 131_072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16_384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 8_192),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131_072,
        ),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, 131_072),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_the_longest_context(changes: dict[str, Any], length: int | None) -> None:
    assert read_config(llama(**changes)).context_length == length


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ([], "no JSON object"),
        ({}, "neither model_type nor architectures"),
        ({"_class_name": "AutoencoderKL"}, "diffusion"),
        (llama(num_hidden_layers="32"), "num_hidden_layers is '32', not a positive whole number"),
        (llama(num_hidden_layers=True), "num_hidden_layers"),
        (llama(num_attention_heads=0), "num_attention_heads"),
        (llama(max_position_embeddings=10**30), "max_position_embeddings"),
        (llama(rope_scaling={"type": "linear", "factor": "4"}), "factor"),
        (llama(rope_scaling={"type": "linear", "factor": float("inf")}), "factor"),
    ],
)
def test_what_is_no_configuration_of_a_model(config: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_config(config)


def test_the_family_of_a_configuration_without_a_type() -> None:
    assert read_config({"architectures": ["PhiForCausalLM"]}).family == "phi"


# --- properties -------------------------------------------------------------------------------------------------

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
_JSON = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
_FIELDS = [*llama(), *DEEPSEEK_V3, "layer_types", "sliding_window", "head_dim", "attn_config", "text_config", "n_head"]


@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=8), st.integers(min_value=0, max_value=2**50))
def test_any_configuration_is_read_or_refused(changes: dict[str, Any], size: int) -> None:
    try:
        config = read_config(llama(**changes))
    except ConfigError:
        return
    found = estimate_vram(size, config)
    assert found.total_gb >= size / GB
    assert VramEstimate.model_validate_json(found.model_dump_json()) == found
    json.dumps(found.model_dump(mode="json"), allow_nan=False)


@given(
    size=st.integers(min_value=0, max_value=2**45),
    tokens=st.integers(min_value=1, max_value=2**22),
    sequences=st.integers(min_value=1, max_value=4096),
)
def test_more_use_never_takes_less_and_the_terms_make_the_total(size: int, tokens: int, sequences: int) -> None:
    config = read_config(llama(rope_scaling=None, max_position_embeddings=2**22))
    found = estimate_vram(size, config, context_tokens=tokens, sequences=sequences)
    assert found == found.at(tokens, sequences), "asked again, the answer is the same"
    assert found.kv_cache_gb is not None
    terms = (found.weights_gb + found.kv_cache_gb + found.overhead_gb) / found.gpu_memory_utilization
    assert terms - 1e-6 <= found.total_gb <= terms + 0.1
    assert found.at(tokens + 1, sequences).total_gb >= found.total_gb
    assert found.at(tokens, sequences + 1).total_gb >= found.total_gb


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (None, "unknown"),
        (8_030_261_248, "8.03B"),
        (999_999_999, "1B"),
        (405_853_388_800, "406B"),
        (1_026_000_000_000, "1.03T"),
        (124_439_808, "124M"),
        (106_816, "107K"),
        (12, "12"),
    ],
)
def test_parameter_counts_as_people_write_them(parameters: int | None, text: str) -> None:
    assert parameters_text(parameters) == text
