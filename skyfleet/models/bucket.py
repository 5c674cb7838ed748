"""One reading of a model bucket: list it once, and look into the models that changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from skyfleet.domain import ids
from skyfleet.domain.model_bucket import BucketError, BucketModel, BucketReading, SkippedPath
from skyfleet.domain.model_config import DTYPE_BITS, ConfigError, ModelConfig, read_config
from skyfleet.domain.sizing import estimate_vram, gigabytes, parameters_text
from skyfleet.models.layout import INDEX, ModelFiles, NotAModel, Object, models_in, stem_of
from skyfleet.models.safetensors import (
    PREFIX_BYTES,
    SafetensorsError,
    Tensor,
    dtype_of,
    header_bytes,
    parameters_of,
    read_header,
)

#: Part of every fingerprint: another number has all models read anew, since they are derived in another way.
_DERIVATION: Final = 1

_REQUESTS_AT_ONCE: Final = 16
_LARGEST_JSON: Final = 32_000_000
#: Read at first from a safetensors file: most headers are shorter, and then one request is all.
_FIRST_BYTES: Final = 65_536
_ERROR_CHARS: Final = 500
#: Lines about what was skipped; a bucket of something else would fill the database with them.
_MOST_SKIPPED: Final = 200

_STATUS: Final = re.compile(r"status code: (\d{3})")
_S3_ERROR: Final = re.compile(r"<Code>([^<]*)</Code>.*?<Message>([^<]*)</Message>", re.DOTALL)
#: `Q4_K_M`, `IQ3_XS`, `BF16` at the end of a GGUF file's name: its encoding (GGUF specification, naming convention).
_GGUF_ENCODING: Final = re.compile(r"[-._]((?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*))$", re.IGNORECASE)
_GGUF_SIZE: Final = re.compile(r"[-._](\d+(?:x\d+)?(?:\.\d+)?[BMT])(?=[-._]|$)", re.IGNORECASE)


class _Unread(Exception):
    """An object could not be fetched this time."""


@dataclass(frozen=True)
class _Found:
    id: str
    files: ModelFiles
    fingerprint: str


class ModelBucket:
    """The models below an `s3://bucket/prefix`.

    `endpoint` is the store's address, None for AWS itself. Without keys, the credentials are those that AWS's own tools
    would find in the environment or on the machine. `ValueError` when the URL is none of a bucket.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint: str | None = None,
        region: str = "us-east-1",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
            # Not repeated: it may hold a key.
            raise ValueError("the address of the model bucket is none: write s3://bucket or s3://bucket/prefix")
        if bool(access_key_id) != bool(secret_access_key):
            raise ValueError("a model bucket needs both an access key id and a secret access key, or neither")
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self.url = "/".join(filter(None, (f"s3://{self._bucket}", self._prefix)))
        self._secrets = [text for text in (access_key_id, secret_access_key) if text]
        options: dict[str, Any] = {
            "region": region,
            "client_options": {
                "allow_http": True,  # an endpoint of one's own network may do without TLS; AWS's never does
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(seconds=30),
            },
            "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        }
        if endpoint:
            options["endpoint"] = endpoint
        if access_key_id:
            # As options, they would be mixed with a session token of the environment, which is of other keys.
            options["credential_provider"] = lambda: {
                "access_key_id": access_key_id,
                "secret_access_key": secret_access_key,
                "expires_at": None,
            }
        try:
            self._store = S3Store(self._bucket, **options)
        except BaseError as error:
            raise ValueError(f"the model bucket cannot be set up: {self._why(error)}") from None

    async def read(self, known: Mapping[str, str]) -> BucketReading:
        """The models as they are now; `known` are the fingerprints of those that need no reading, by id.

        Raises `BucketError` when the bucket cannot be listed to its end.
        """
        objects = await self._list()
        found, skipped = await asyncio.to_thread(models_in, objects, self._prefix)
        reading = BucketReading(skipped=skipped)
        changed: dict[str, _Found] = {}
        for files in found:
            # A prefix that is a model itself gives it its name.
            one = _Found(files.path or self._prefix or self._bucket, files, _fingerprint(self.url, files))
            if not ids.is_model_id(one.id):
                reason = "its path is no model id: letters, digits and . _ - / : @ +, at most 200 of them"
                reading.skipped.append(SkippedPath(path=files.path, reason=reason))
            elif known.get(one.id) == one.fingerprint:
                reading.unchanged.append(one.id)
            else:
                changed[one.id] = one
        requests = asyncio.Semaphore(_REQUESTS_AT_ONCE)
        outcomes = await asyncio.gather(*(self._read(one, requests) for one in changed.values()))
        for one, outcome in zip(changed.values(), outcomes, strict=True):
            if isinstance(outcome, BucketModel):
                reading.models.append(outcome)
                continue
            if isinstance(outcome, _Unread):
                reading.unread.append(one.id)
            reading.skipped.append(SkippedPath(path=one.files.path, reason=str(outcome)[:_ERROR_CHARS]))
        reading.skipped.sort(key=lambda item: (not item.path, item.path))
        if (more := len(reading.skipped) - _MOST_SKIPPED) > 0:
            reading.skipped[_MOST_SKIPPED:] = [SkippedPath(path="", reason=f"and {more} more")]
        return reading

    # --- requests -------------------------------------------------------------------------------------------

    async def _list(self) -> list[Object]:
        objects: list[Object] = []
        try:
            async for chunk in obstore.list(self._store, self._prefix or None, chunk_size=1_000):
                objects += [
                    Object(item["path"], item["size"], item["e_tag"] or item["last_modified"].isoformat())
                    for item in chunk
                ]
        except (BaseError, OSError, ValueError) as error:
            status = _STATUS.search(str(error))
            refused = status is not None and status[1][0] == "4" and status[1] not in ("408", "429")
            raise BucketError(
                f"{self.url} could not be listed: {self._why(error)}", retryable=not refused
            ) from None  # the cause's own text may hold a key
        return objects

    async def _fetch(self, item: Object, length: int, requests: asyncio.Semaphore, start: int = 0) -> bytes:
        """Bytes of an object. Raises `_Unread`."""
        if length == 0:
            return b""
        async with requests:
            try:
                got = bytes(await obstore.get_range_async(self._store, item.path, start=start, length=length))
            except (BaseError, OSError, ValueError) as error:
                raise _Unread(f"{item.name} could not be read: {self._why(error)}") from None
        if len(got) != length:
            raise _Unread(f"{item.name} changed while it was read")
        return got

    async def _json(self, item: Object, requests: asyncio.Semaphore) -> Any:
        if item.size > _LARGEST_JSON:
            raise NotAModel(f"{item.name} has {item.size} bytes, more than any real one")
        content = await self._fetch(item, item.size, requests)
        try:
            return json.loads(content, parse_constant=lambda name: None)  # NaN and Infinity are no JSON
        except (ValueError, RecursionError) as error:
            raise NotAModel(f"{item.name} is no JSON: {error}") from error

    def _why(self, error: Exception) -> str:
        """What the store said, without keys, addresses of debuggers and the library's own structures."""
        text = str(error).partition("\n\nDebug source")[0].strip()
        status, code = _STATUS.search(text), _S3_ERROR.search(text)
        if code is not None:
            text = f"{code[1]}: {code[2]}" + (f" ({status[1]})" if status else "")
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text[:_ERROR_CHARS] or type(error).__name__

    # --- one model ------------------------------------------------------------------------------------------

    async def _read(self, one: _Found, requests: asyncio.Semaphore) -> BucketModel | NotAModel | _Unread:
        try:
            config = ModelConfig(family="")
            if one.files.config is not None:
                try:
                    config = read_config(await self._json(one.files.config, requests))
                except ConfigError as error:
                    raise NotAModel(f"{one.files.config.name}: {error}") from error
            if one.files.safetensors:
                return await self._of_tensors(one, config, requests)
            return self._of_sizes(one, config)
        except (NotAModel, _Unread) as reason:
            return reason

    async def _of_tensors(self, one: _Found, config: ModelConfig, requests: asyncio.Semaphore) -> BucketModel:
        shards: Sequence[Object] = one.files.weights
        if one.files.index is not None:
            shards = _shards(await self._json(one.files.index, requests), shards)
        headers = await asyncio.gather(*(self._header(shard, requests) for shard in shards), return_exceptions=True)
        tensors: list[Tensor] = []
        # What is wrong with the model goes before what is wrong with the network.
        for header in sorted(headers, key=lambda outcome: not isinstance(outcome, NotAModel)):
            if isinstance(header, BaseException):
                raise header
            tensors += header
        if not tensors:
            raise NotAModel("its weight files hold no tensors")
        size = sum(shard.size for shard in shards)
        if config.quantised:
            bits = DTYPE_BITS.get(config.dtype or "", 8)
            return self._model(one, config, size, config.dtype, parameters_of(tensors, bits))
        return self._model(one, config, size, dtype_of(tensors) or config.dtype, parameters_of(tensors))

    async def _header(self, shard: Object, requests: asyncio.Semaphore) -> list[Tensor]:
        try:
            first = await self._fetch(shard, min(shard.size, _FIRST_BYTES), requests)
            end = PREFIX_BYTES + header_bytes(first, shard.size)
            if end > len(first):
                first += await self._fetch(shard, end - len(first), requests, start=len(first))
            return read_header(first[PREFIX_BYTES:end], shard.size)
        except SafetensorsError as error:
            raise NotAModel(f"{shard.name} {error}") from error

    def _of_sizes(self, one: _Found, config: ModelConfig) -> BucketModel:
        """Weights that are not looked into: their size is known, and with their dtype how many there are."""
        size = sum(part.size for part in one.files.weights)
        if not size:
            raise NotAModel("its weight files are empty")
        if one.files.gguf:
            return self._model(one, config, size, _named(_GGUF_ENCODING, one.files), None)
        bits = DTYPE_BITS.get(config.dtype or "")
        return self._model(one, config, size, config.dtype, size * 8 // bits if bits else None)

    def _model(
        self, one: _Found, config: ModelConfig, size_bytes: int, dtype: str | None, parameters: int | None
    ) -> BucketModel:
        short = PurePosixPath(one.id).name
        labelled = _named(_GGUF_SIZE, one.files) if parameters is None and one.files.gguf else None
        return BucketModel(
            id=one.id,
            name=short,
            family=config.family or short.partition("-")[0].lower(),
            size=labelled or parameters_text(parameters),
            parameters=parameters,
            context_length=config.context_length,
            dtype=dtype,
            weights_gb=gigabytes(size_bytes),
            vram_estimate=estimate_vram(size_bytes, config),
            source=self._source(one.files),
            fingerprint=one.fingerprint,
        )

    def _source(self, files: ModelFiles) -> str:
        """Where an engine finds the weights: the folder, or the (first) file of a GGUF."""
        if files.gguf:
            return f"s3://{self._bucket}/{files.weights[0].path}"
        return "/".join(filter(None, (self.url, files.path))) + "/"


def _shards(index: Any, there: Sequence[Object]) -> list[Object]:
    """The weight files that an index names. Raises `NotAModel`."""
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise NotAModel(f"{INDEX} has no weight_map")
    by_name = {item.name: item for item in there}
    names = sorted(set(named.values()))
    if missing := [name for name in names if name not in by_name]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise NotAModel(f"{missing[0]}{more}, which {INDEX} names, is not there")
    return [by_name[name] for name in names]


def _fingerprint(url: str, files: ModelFiles) -> str:
    """Changes when any file does that the model is derived from."""
    parts = [item for item in (files.config, files.index, *files.weights) if item is not None]
    content = [_DERIVATION, url, files.path, [(item.path, item.size, item.version) for item in parts]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _named(pattern: re.Pattern[str], files: ModelFiles) -> str | None:
    """What the name of a GGUF file says of it."""
    found = pattern.search(files.path.rpartition("/")[2]) or pattern.search(stem_of(files.weights[0]))
    return found[1].upper() if found else None
