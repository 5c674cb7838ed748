"""A real S3 store for tests, moto's behind a server on loopback, and files of the form that models have."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask
from moto.moto_server.werkzeug_app import create_backend_app
from obstore.store import S3Store
from werkzeug.serving import make_server

from skyfleet.models.bucket import ModelBucket

KEY, SECRET = "AKIA-of-a-test", "a-secret-that-no-log-may-hold"
_BYTES = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1, "I64": 8}

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


@dataclass
class Store:
    """The server. `requests` are those since the last `put` or `delete`."""

    moto: Flask
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)  # session tokens that requests carried
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)  # part of a path → status line and S3 error code

    def make(self, name: str) -> None:
        """Make an empty bucket."""
        assert self.moto.test_client().put(f"/{name}").status_code == 200

    def bucket(self, url: str, **changes: Any) -> ModelBucket:
        """The reader under test."""
        given = {"endpoint": self.url, "access_key_id": KEY, "secret_access_key": SECRET, **changes}
        return ModelBucket(url, **given)

    def put(self, bucket: str, objects: Mapping[str, bytes | str | dict[str, Any]]) -> None:
        """Write objects; dictionaries as JSON."""
        writer = writer_of(self.url, bucket)
        for key, content in objects.items():
            writer.put(key, as_bytes(content))
        self.requests.clear()

    def delete(self, bucket: str, *keys: str) -> None:
        """Remove objects."""
        writer_of(self.url, bucket).delete(list(keys))
        self.requests.clear()

    def gets(self) -> list[str]:
        """Keys of the objects that were fetched, once for each request."""
        return [path.split("/", 2)[2] for method, path in self.requests if method == "GET" and path.count("/") > 1]

    def lists(self) -> int:
        """How many pages were listed."""
        return sum(1 for method, path in self.requests if method == "GET" and path.count("/") == 1)


@contextmanager
def running_store() -> Iterator[Store]:
    """Serve on a free port, in a thread."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = create_backend_app("s3")
    store = Store(moto)

    def application(environment: WSGIEnvironment, start: StartResponse) -> Any:
        path = environment["PATH_INFO"]
        store.requests.append((environment["REQUEST_METHOD"], path))
        store.tokens.add(environment.get("HTTP_X_AMZ_SECURITY_TOKEN", ""))
        for part, (status, code) in store.refused.items():
            if part in path:
                start(status, [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>because, {KEY}</Message></Error>".encode()]
        return moto(environment, start)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join(10)


def writer_of(url: str, bucket: str) -> S3Store:
    """Writes to a bucket of moto's."""
    return S3Store(
        bucket,
        endpoint=url,
        region="us-east-1",
        access_key_id=KEY,
        secret_access_key=SECRET,
        client_options={"allow_http": True},
    )


def as_bytes(content: bytes | str | dict[str, Any]) -> bytes:
    """What is stored: dictionaries as JSON."""
    text = json.dumps(content) if isinstance(content, dict) else content
    return text.encode() if isinstance(text, str) else text


def safetensors(tensors: Mapping[str, tuple[str, list[int]]], *, metadata: int = 0) -> bytes:
    """A safetensors file of zeros: (dtype, shape) by name, and as many bytes of metadata in its header."""
    header: dict[str, Any] = {"__metadata__": {"note": "x" * metadata}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = _BYTES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def model(path: str, *, shards: int = 1, **changes: Any) -> dict[str, bytes | str | dict[str, Any]]:
    """The objects of a sound model of 32 x 8 + `shards` x 64 parameters."""
    tensors = {"model.embed_tokens.weight": ("BF16", [32, 8])}
    layers = {f"model.layers.{number}.mlp.weight": ("BF16", [8, 8]) for number in range(shards)}
    files: dict[str, bytes | str | dict[str, Any]] = {f"{path}/config.json": {**CONFIG, **changes}}
    if shards == 1:
        return files | {f"{path}/model.safetensors": safetensors(tensors | layers)}
    weight_map: dict[str, str] = {}
    for number, (name, described) in enumerate(layers.items()):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: described} | (tensors if number == 0 else {})
        weight_map |= dict.fromkeys(part, file)
        files[f"{path}/{file}"] = safetensors(part)
    return files | {f"{path}/model.safetensors.index.json": {"weight_map": weight_map}}
