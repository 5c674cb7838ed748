"""Models are read from a real S3 store; what is no model, or a broken one, is told apart and never stops the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from skyfleet.domain.model_bucket import BucketError, BucketModel, BucketReading
from skyfleet.sandbox_bucket.models import objects
from tests.models.store import CONFIG, KEY, SECRET, Store, model, safetensors


async def read(store: Store, name: str, prefix: str = "", known: dict[str, str] | None = None) -> BucketReading:
    return await store.bucket(f"s3://{name}/{prefix}").read(known or {})


def found(reading: BucketReading) -> dict[str, BucketModel]:
    return {one.id: one for one in reading.models}


def reasons(reading: BucketReading) -> dict[str, str]:
    return {item.path: item.reason for item in reading.skipped}


# --- what a model is ------------------------------------------------------------------------------------------------


async def test_a_model_is_what_its_files_say(store: Store, name: str) -> None:
    store.put(name, model("prod/acme/tiny-1") | {"prod/acme/tiny-1/README.md": "read me"})
    reading = await read(store, name, "prod")
    (one,) = reading.models
    assert (one.id, one.name, one.family) == ("acme/tiny-1", "tiny-1", "llama")
    assert (one.parameters, one.size, one.dtype, one.context_length) == (32 * 8 + 64, "320", "bfloat16", 512)
    assert one.source == f"s3://{name}/prod/acme/tiny-1/"
    assert one.weights_gb > 0
    assert one.vram_estimate.kv_cache is not None
    assert one.vram_estimate.kv_cache.bytes_per_token == 2 * 2 * 1 * 4 * 2
    assert one.vram_estimate.context_tokens == 512
    assert not reading.skipped


async def test_a_model_in_parts_is_all_of_them(store: Store, name: str) -> None:
    files = model("acme/big", shards=3)
    files["acme/big/consolidated.safetensors"] = safetensors({"the same again": ("BF16", [100])})
    store.put(name, files)
    (one,) = (await read(store, name)).models
    assert one.parameters == 32 * 8 + 3 * 64
    parts = [content for key, content in files.items() if "-of-" in key]
    assert one.weights_gb == pytest.approx(sum(len(part) for part in parts) / 2**30, rel=1e-3)


async def test_what_lies_below_a_model_belongs_to_it(store: Store, name: str) -> None:
    store.put(name, model("acme/one") | model("acme/one/onnx") | {"acme/one/original/consolidated.00.pth": "x"})
    reading = await read(store, name)
    assert list(found(reading)) == ["acme/one"]
    assert not reading.skipped


@pytest.mark.parametrize("prefix", ["acme/one", "acme/one/"])
async def test_a_prefix_may_be_a_model_itself(store: Store, name: str, prefix: str) -> None:
    store.put(name, model("acme/one"))
    (one,) = (await read(store, name, prefix)).models
    assert (one.id, one.name, one.source) == ("acme/one", "one", f"s3://{name}/acme/one/")


async def test_a_prefix_is_a_folder_not_the_beginning_of_a_name(store: Store, name: str) -> None:
    store.put(name, model("prod/a") | model("production/b"))
    assert list(found(await read(store, name, "prod"))) == ["a"]


async def test_a_header_longer_than_the_first_read_is_read_to_its_end(store: Store, name: str) -> None:
    files = model("m")
    files["m/model.safetensors"] = safetensors({"w": ("F16", [4, 4])}, metadata=200_000)
    store.put(name, files)
    (one,) = (await read(store, name)).models
    assert (one.parameters, one.dtype) == (16, "float16")
    assert store.gets().count("m/model.safetensors") == 2


async def test_the_sandbox_bucket_holds_models(store: Store, name: str) -> None:
    contents = dict(objects())
    assert contents == dict(objects()), "the same bytes each time: nothing is read anew after a restart"
    store.put(name, contents)
    reading = await read(store, name)
    models = found(reading)
    assert set(models) == {"sandbox/tiny-llama-random", "sandbox/tiny-mixtral-random"}
    assert {one.family for one in models.values()} == {"llama", "mixtral"}
    assert models["sandbox/tiny-llama-random"].parameters == 106_816
    assert not reading.skipped


# --- quantised, and other forms -------------------------------------------------------------------------------------

_PACKED = {
    "layers.0.qweight": ("I32", [512, 16]),
    "layers.0.qzeros": ("I32", [4, 16]),
    "layers.0.scales": ("F16", [4, 128]),
    "layers.0.g_idx": ("I32", [512]),
    "norm.weight": ("F16", [128]),
}


@pytest.mark.parametrize(
    ("quantisation", "tensors", "parameters", "dtype"),
    [
        ({"quant_method": "awq", "bits": 4}, _PACKED, 512 * 16 * 8 + 128, "int4"),
        ({"quant_method": "gptq", "bits": 8}, _PACKED, 512 * 16 * 4 + 128, "int8"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"w.weight": ("U8", [64, 1]), "w.weight.absmax": ("F32", [2]), "w.weight.quant_map": ("F32", [16])},
            128,
            "int4",
        ),
        (
            {"quant_method": "fp8"},
            {"w.weight": ("F8_E4M3", [16, 16]), "w.weight_scale_inv": ("F32", [1, 1]), "norm": ("BF16", [16])},
            272,
            "fp8",
        ),
        (
            {"quant_method": "mxfp4"},
            {"experts.gate_up_proj_blocks": ("U8", [2, 8, 16]), "experts.gate_up_proj_scales": ("U8", [2, 8])},
            512,
            "mxfp4",
        ),
        (None, {"w": ("BF16", [10, 10]), "position_ids": ("I64", [1, 512])}, 100, "bfloat16"),
    ],
    ids=["awq", "gptq", "bitsandbytes", "fp8", "mxfp4", "buffers"],
)
async def test_parameters_that_share_a_number_are_counted(
    store: Store, name: str, quantisation: Any, tensors: Any, parameters: int, dtype: str
) -> None:
    files = model("m", **({"quantization_config": quantisation} if quantisation else {}))
    files["m/model.safetensors"] = safetensors(tensors)
    store.put(name, files)
    (one,) = (await read(store, name)).models
    if quantisation:
        assert (one.parameters, one.dtype) == (parameters, dtype)
    else:
        assert one.parameters == parameters


async def test_the_dtype_is_that_of_the_weights_not_of_the_configuration(store: Store, name: str) -> None:
    files = model("m", torch_dtype="bfloat16")
    files["m/model.safetensors"] = safetensors({"w": ("F32", [4]), "norm": ("BF16", [2])})
    store.put(name, files)
    (one,) = (await read(store, name)).models
    assert one.dtype == "float32"


async def test_older_weights_are_known_by_their_size(store: Store, name: str) -> None:
    store.put(
        name,
        {
            "m/config.json": {**CONFIG, "torch_dtype": "float16"},
            "m/pytorch_model-00001-of-00002.bin": b"x" * 100,
            "m/pytorch_model-00002-of-00002.bin": b"x" * 60,
            "m/training_args.bin": b"x" * 1000,
        },
    )
    (one,) = (await read(store, name)).models
    assert (one.parameters, one.dtype) == (80, "float16")


async def test_gguf_files_are_models_by_themselves(store: Store, name: str) -> None:
    store.put(
        name,
        {
            "acme/one-GGUF/one-7B-Q4_K_M.gguf": b"x" * 10,
            "acme/one-GGUF/README.md": "read me",
            "acme/two-GGUF/two-8x7B-IQ3_XS.gguf": b"x" * 10,
            "acme/two-GGUF/two-8x7B-BF16-00001-of-00002.gguf": b"x" * 20,
            "acme/two-GGUF/two-8x7B-BF16-00002-of-00002.gguf": b"x" * 20,
            "acme/two-GGUF/mmproj-two-F16.gguf": b"x" * 5,
        },
    )
    reading = await read(store, name)
    models = found(reading)
    assert {key: (one.dtype, one.size) for key, one in models.items()} == {
        "acme/one-GGUF": ("Q4_K_M", "7B"),
        "acme/two-GGUF/two-8x7B-IQ3_XS": ("IQ3_XS", "8X7B"),
        "acme/two-GGUF/two-8x7B-BF16": ("BF16", "8X7B"),
    }
    assert models["acme/one-GGUF"].source == f"s3://{name}/acme/one-GGUF/one-7B-Q4_K_M.gguf"
    assert models["acme/two-GGUF/two-8x7B-BF16"].weights_gb == pytest.approx(40 / 2**30, rel=1e-3)
    assert models["acme/one-GGUF"].vram_estimate.kv_cache is None
    assert not reading.skipped


# --- what is none ---------------------------------------------------------------------------------------------------

_SOUND = safetensors({"w": ("BF16", [8, 8])})


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"config.json": "{not json"}, "a config.json, and no weights beside it"),
        ({"config.json": "{not json", "model.safetensors": _SOUND}, "config.json is no JSON"),
        ({"config.json": b"\xff\xfe\x00", "model.safetensors": _SOUND}, "config.json is no JSON"),
        ({"config.json": "[" * 100_000, "model.safetensors": _SOUND}, "config.json is no JSON"),
        ({"config.json": "", "model.safetensors": _SOUND}, "config.json is no JSON"),
        ({"config.json": "[]", "model.safetensors": _SOUND}, "config.json: it is no JSON object"),
        ({"config.json": {"theme": "dark"}, "model.safetensors": _SOUND}, "neither model_type nor architectures"),
        (
            {"config.json": {**CONFIG, "num_hidden_layers": "two"}, "model.safetensors": _SOUND},
            "num_hidden_layers is 'two'",
        ),
        ({"config.json": CONFIG}, "a config.json, and no weights beside it"),
        (
            {"config.json": CONFIG, "a.safetensors": _SOUND, "b.safetensors": _SOUND},
            "2 .safetensors files, and no model.safetensors.index.json",
        ),
        (
            {
                "config.json": CONFIG,
                "model.safetensors.index.json": {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}},
                "a.safetensors": _SOUND,
            },
            "b.safetensors, which model.safetensors.index.json names, is not there",
        ),
        (
            {"config.json": CONFIG, "model.safetensors.index.json": {"metadata": {}}, "a.safetensors": _SOUND},
            "model.safetensors.index.json has no weight_map",
        ),
        (
            {"config.json": CONFIG, "model.safetensors.index.json": {"weight_map": {"a": "a.safetensors"}}},
            "names weights that are not there",
        ),
        ({"config.json": CONFIG, "model.safetensors": _SOUND[:-1]}, "model.safetensors is truncated"),
        ({"config.json": CONFIG, "model.safetensors": _SOUND[:20]}, "model.safetensors is truncated"),
        ({"config.json": CONFIG, "model.safetensors": b"1234"}, "model.safetensors is truncated: 4 bytes"),
        ({"config.json": CONFIG, "model.safetensors": b""}, "model.safetensors is truncated: 0 bytes"),
        ({"config.json": CONFIG, "model.safetensors": _SOUND + b"x"}, "is longer than its tensors"),
        ({"config.json": CONFIG, "model.safetensors": b"version https://git-lfs"}, "is no safetensors file"),
        (
            {"config.json": CONFIG, "model.safetensors": (9).to_bytes(8, "little") + b"not json!"},
            "has a header that is no JSON",
        ),
        (
            {"config.json": CONFIG, "model.safetensors": (8).to_bytes(8, "little") + b'{"a": 1}'},
            "'a' by what is no JSON object",
        ),
        ({"config.json": CONFIG, "model.safetensors": safetensors({})}, "hold no tensors"),
        ({"config.json": CONFIG, "pytorch_model.bin": b""}, "weight files are empty"),
        ({"adapter_config.json": {}, "adapter_model.safetensors": _SOUND}, "an adapter (LoRA)"),
        ({"model_index.json": {}, "unet/config.json": {}, "unet/x.safetensors": _SOUND}, "a diffusion pipeline"),
        ({"consolidated.00.pth": "x", "params.json": "{}"}, "weights, and no config.json beside them"),
        ({"config.json": CONFIG, "a.gguf": "x", "b.gguf": "x"}, "2 GGUF models beside one config.json"),
    ],
)
async def test_what_is_no_model_is_told_apart_and_the_others_are_read(
    store: Store, name: str, files: dict[str, Any], why: str
) -> None:
    store.put(name, model("acme/sound") | {f"acme/broken/{file}": content for file, content in files.items()})
    reading = await read(store, name)
    assert list(found(reading)) == ["acme/sound"]
    assert list(reasons(reading)) == ["acme/broken"]
    assert why in reasons(reading)["acme/broken"]
    assert not reading.unread, "it was read, and is no model"


@pytest.mark.parametrize(
    "facts",
    [
        {"dtype": "BF16", "shape": [4], "data_offsets": [0, 9]},
        {"dtype": "BF16", "shape": [-4], "data_offsets": [0, 8]},
        {"dtype": "BF16", "shape": [4], "data_offsets": [8, 0]},
        {"dtype": "BF16", "shape": [4]},
        {"dtype": "", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F1_OF_TOMORROW", "shape": [10**15, 10**15], "data_offsets": [0, 8]},
        {"dtype": "BF16", "shape": [True], "data_offsets": [0, 2]},
    ],
)
async def test_a_header_that_contradicts_itself_is_no_model(store: Store, name: str, facts: dict[str, Any]) -> None:
    text = json.dumps({"w": facts}).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(8)
    store.put(name, {"m/config.json": CONFIG, "m/model.safetensors": content})
    reading = await read(store, name)
    assert not reading.models
    assert "'w'" in reasons(reading)["m"]


async def test_a_path_that_is_no_id_is_skipped(store: Store, name: str) -> None:
    store.put(name, model("acme/with space") | model("a/" + "x" * 200))
    reading = await read(store, name)
    assert not reading.models
    assert all("no model id" in reason for reason in reasons(reading).values())
    assert len(reading.skipped) == 2


async def test_folders_of_something_else_are_one_line(store: Store, name: str) -> None:
    store.put(name, model("acme/m") | {f"data/part-{number}/rows.parquet": "x" for number in range(7)})
    store.put(name, {"README.md": "read me", "data/empty/": ""})
    reading = await read(store, name)
    (line,) = reading.skipped
    assert line.path == ""
    assert line.reason.startswith("7 folders have neither a config.json nor weights: data/part-0, ")


# --- how often ------------------------------------------------------------------------------------------------------


async def test_what_has_not_changed_is_not_read_again(store: Store, name: str) -> None:
    store.put(name, model("acme/one") | model("acme/two", shards=2))
    first = await read(store, name)
    known = {one.id: one.fingerprint for one in first.models}
    store.requests.clear()
    second = await read(store, name, known=known)
    assert (second.models, sorted(second.unchanged)) == ([], ["acme/one", "acme/two"])
    assert (store.gets(), store.lists()) == ([], 1)

    store.put(name, model("acme/one", max_position_embeddings=1024))
    third = await read(store, name, known=known)
    assert third.unchanged == ["acme/two"]
    assert found(third)["acme/one"].context_length == 1024
    assert found(third)["acme/one"].fingerprint != known["acme/one"]


async def test_another_bucket_with_the_same_bytes_is_another_source(store: Store, name: str) -> None:
    store.put(name, model("a/m") | model("b/m"))
    first = (await read(store, name, "a")).models[0]
    (second,) = (await read(store, name, "b", {first.id: first.fingerprint})).models
    assert second.source == f"s3://{name}/b/m/"


async def test_ten_thousand_objects_are_listed_once(store: Store, name: str) -> None:
    inside = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]  # over HTTP it would take ten times as long
    for number in range(10_000):
        inside.put_object(name, f"data/{number // 100:03}/{number:05}.parquet", b"x")
    store.put(name, model("acme/m") | {f"broken/{number:03}/config.json": "{}" for number in range(250)})
    reading = await read(store, name)
    assert list(found(reading)) == ["acme/m"]
    assert store.lists() == 11
    assert len(reading.skipped) == 201
    assert reading.skipped[-1].reason == "and 51 more"
    assert len(store.gets()) == 2


# --- a store that does not play along -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        ("403 Forbidden", "AccessDenied", False),
        ("403 Forbidden", "SignatureDoesNotMatch", False),
        ("404 Not Found", "NoSuchBucket", False),
        ("400 Bad Request", "ExpiredToken", False),
        ("503 Slow Down", "SlowDown", True),
        ("500 Internal Server Error", "InternalError", True),
    ],
)
async def test_a_store_that_refuses_says_why_and_no_key(
    store: Store, name: str, status: str, code: str, retryable: bool
) -> None:
    store.refused[f"/{name}"] = (status, code)
    with pytest.raises(BucketError, match=code) as failure:
        await read(store, name)
    assert failure.value.retryable is retryable
    text = str(failure.value)
    assert KEY not in text
    assert SECRET not in text
    assert "because, …" in text
    assert failure.value.__cause__ is None


async def test_a_store_that_is_away_may_come_back(store: Store, name: str) -> None:
    bucket = store.bucket(f"s3://{name}", endpoint="http://127.0.0.1:9")
    with pytest.raises(BucketError, match="could not be listed") as failure:
        await bucket.read({})
    assert failure.value.retryable


async def test_an_object_that_cannot_be_fetched_leaves_its_model_as_it_was(store: Store, name: str) -> None:
    store.put(name, model("acme/one") | model("acme/two"))
    store.refused["acme/one/model.safetensors"] = ("403 Forbidden", "AccessDenied")
    reading = await read(store, name)
    assert list(found(reading)) == ["acme/two"]
    assert reading.unread == ["acme/one"]
    assert "model.safetensors could not be read: AccessDenied" in reasons(reading)["acme/one"]
    assert KEY not in reasons(reading)["acme/one"]


@pytest.mark.parametrize(
    ("url", "changes"),
    [
        ("https://store/bucket", {}),
        ("s3://", {}),
        ("s3://KEY:SECRET@bucket", {}),
        ("s3://bucket", {"secret_access_key": None}),
    ],
)
async def test_what_is_no_bucket_is_refused_without_repeating_it(
    store: Store, url: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="bucket") as failure:
        store.bucket(url, **changes)
    assert "SECRET" not in str(failure.value)
    assert KEY not in str(failure.value)


async def test_a_session_token_of_the_environment_is_not_mixed_in(
    store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(name, model("m"))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of other keys")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert list(found(await read(store, name))) == ["m"]
    assert "of other keys" not in store.tokens
