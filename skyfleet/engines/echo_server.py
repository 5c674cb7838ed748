"""The server process of the echo engine. Sources: OpenAI API reference (chat completions, completions, models,
streaming), vLLM "Production Metrics".

A token is a word with the blanks before it. There is no model and no cache: what would be a model's own
(log-probabilities, cache usage) is absent rather than made up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from skyfleet.engines.http_server import ClientGone, HttpError, HttpServer, Request, Response, json_response

FINGERPRINT = "skyfleet-echo"
STOP_GRACE_S = 5.0
_TOKEN = re.compile(r"\s*\S+|\s+$")
_MAX_CHOICES = 128
_LOOK_EVERY_S = 0.5  # how often a request that waits for a slot looks whether its client is still there


def log(message: str) -> None:
    """A line of the engine's log."""
    print(f"{datetime.now(timezone.utc).isoformat(timespec='milliseconds')} {message}", file=sys.stderr, flush=True)


def tokens_of(text: str) -> list[str]:
    """The tokens of a text; joined they are the text again."""
    return _TOKEN.findall(text)


class BadRequest(HttpError):
    """A request that OpenAI's API would refuse, with its parameter and code."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(status, message)
        self.param = param
        self.code = code


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Answer:
    """What one choice says, cut to `stop` and `max_tokens`."""

    tokens: tuple[str, ...]
    finish_reason: str


@dataclass(frozen=True)
class Work:
    """A request, understood: all answers are known before the first token is sent."""

    chat: bool
    answers: tuple[Answer, ...]
    prompt_tokens: int
    stream: bool
    include_usage: bool

    @property
    def usage(self) -> dict[str, int]:
        """Token counts, as OpenAI's `usage`."""
        generated = sum(len(answer.tokens) for answer in self.answers)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
        }


class EchoApp:
    """The routes, and the figures that `/metrics` shows."""

    def __init__(self, model: str, tokens_per_second: float | None = None, max_concurrency: int = 256) -> None:
        self._model = model
        self._created = int(time.time())
        self._seconds_per_token = 1.0 / tokens_per_second if tokens_per_second else 0.0
        self._slots = asyncio.Semaphore(max_concurrency)
        self.running = 0
        self.waiting = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.finished: Counter[str] = Counter()

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return await self._route(request)
        except BadRequest as error:
            body = error_body(error.status, error.message, error.param, error.code)
            return json_response(body, error.status, error.headers)

    async def _route(self, request: Request) -> Response:
        path = request.path.rstrip("/") or "/"
        if path in ("/v1/chat/completions", "/v1/completions"):
            _allow(request, "POST")
            work = understand(_json_object(request.body), self._model, chat=path == "/v1/chat/completions")
            return await self._complete(request, work)
        if path == "/v1/models":
            _allow(request, "GET", "HEAD")
            return json_response({"object": "list", "data": [self._model_card()]})
        if path.startswith("/v1/models/"):
            _allow(request, "GET", "HEAD")
            _check_model(path[len("/v1/models/") :], self._model)
            return json_response(self._model_card())
        if path == "/health":
            _allow(request, "GET", "HEAD")
            return Response(content_type="text/plain; charset=utf-8")
        if path == "/metrics":
            _allow(request, "GET", "HEAD")
            return Response(body=self._metrics().encode(), content_type="text/plain; version=0.0.4; charset=utf-8")
        raise BadRequest(f"unknown path {request.path}", status=404)

    def _model_card(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": self._created, "owned_by": FINGERPRINT}

    async def _complete(self, request: Request, work: Work) -> Response:
        if work.stream:
            return Response(
                content_type="text/event-stream; charset=utf-8",
                headers={"Cache-Control": "no-cache"},
                stream=self._stream(request, work),
            )
        async with self._slot(request, work):
            for answer in work.answers:
                for _ in answer.tokens:
                    await self._pace(request)
        return json_response(self._envelope(work, chunk=False, choices=_whole_choices(work)) | {"usage": work.usage})

    @contextlib.asynccontextmanager
    async def _slot(self, request: Request, work: Work) -> AsyncIterator[None]:
        """Wait for one of `max_concurrency` slots, hold it, and count how it ended."""
        ended = "abort"  # unless it comes to its end: the client may leave, or the server stop
        try:
            await self._acquire(request)
            self.running += 1
            try:
                self.prompt_tokens += work.prompt_tokens
                yield
                ended = work.answers[-1].finish_reason
            finally:
                self.running -= 1
                self._slots.release()
        finally:
            self.finished[ended] += 1

    async def _acquire(self, request: Request) -> None:
        acquiring = asyncio.ensure_future(self._slots.acquire())
        self.waiting += 1
        try:
            while not (await asyncio.wait({acquiring}, timeout=_LOOK_EVERY_S))[0]:
                if request.client_gone:
                    raise ClientGone
        except BaseException:
            if not acquiring.cancel():
                self._slots.release()
            raise
        finally:
            self.waiting -= 1

    async def _pace(self, request: Request) -> None:
        """One token's time. Raises `ClientGone` when nobody is there to read it."""
        if self._seconds_per_token:
            await asyncio.sleep(self._seconds_per_token)
        if request.client_gone:
            raise ClientGone
        self.generated_tokens += 1

    async def _stream(self, request: Request, work: Work) -> AsyncIterator[bytes]:
        envelope = self._envelope(work, chunk=True, choices=[])
        if work.include_usage:
            envelope["usage"] = None

        def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
            return b"data: %b\n\n" % json.dumps({**envelope, "choices": choices, **more}).encode()

        async with self._slot(request, work):
            for index, answer in enumerate(work.answers):
                if work.chat:
                    yield event([_chunk_choice(work, index, {"role": "assistant", "content": ""}, None)])
                for token in answer.tokens:
                    await self._pace(request)
                    yield event([_chunk_choice(work, index, {"content": token}, None)])
                yield event([_chunk_choice(work, index, {}, answer.finish_reason)])
            if work.include_usage:
                yield event([], usage=work.usage)
            yield b"data: [DONE]\n\n"

    def _envelope(self, work: Work, *, chunk: bool, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if work.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if work.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }

    def _metrics(self) -> str:
        label = self._model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        lines: list[str] = []

        def add(name: str, kind: str, text: str, values: Mapping[str, float]) -> None:
            lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))
            lines.extend(f'{name}{{engine="0",model_name="{label}"{more}}} {value}' for more, value in values.items())

        add("vllm:num_requests_running", "gauge", "Requests being answered.", {"": self.running})
        add("vllm:num_requests_waiting", "gauge", "Requests waiting for a slot.", {"": self.waiting})
        add("vllm:prompt_tokens_total", "counter", "Prompt tokens read.", {"": self.prompt_tokens})
        add("vllm:generation_tokens_total", "counter", "Tokens generated.", {"": self.generated_tokens})
        reasons = {f',finished_reason="{reason}"': self.finished[reason] for reason in ("stop", "length", "abort")}
        add("vllm:request_success_total", "counter", "Answers by how they ended.", reasons)
        return "\n".join(lines) + "\n"


def _whole_choices(work: Work) -> list[dict[str, Any]]:
    choices: list[dict[str, Any]] = []
    for index, answer in enumerate(work.answers):
        text = "".join(answer.tokens)
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if work.chat else {"text": text}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": answer.finish_reason})
    return choices


def _chunk_choice(work: Work, index: int, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    said: dict[str, Any] = {"delta": delta} if work.chat else {"text": delta.get("content", "")}
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}


def _allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        error = BadRequest(f"{request.path} takes {' or '.join(methods)}, not {request.method}", status=405)
        error.headers = {"Allow": ", ".join(methods)}
        raise error


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object")
    return value


def _check_model(asked: Any, model: str) -> None:
    if not isinstance(asked, str) or not asked:
        raise BadRequest("`model` is missing", param="model")
    if asked != model:
        message = f"The model `{asked}` does not exist; this server has `{model}`."
        raise BadRequest(message, param="model", code="model_not_found", status=404)


def understand(body: Mapping[str, Any], model: str, *, chat: bool) -> Work:
    """Check a request and work out its answers. Raises `BadRequest` naming the parameter."""
    _check_model(body.get("model"), model)
    prompts = [_last_message(body.get("messages"))] if chat else _prompts(body.get("prompt"))
    n = _integer(body, "n", 1, _MAX_CHOICES) or 1
    limit = _integer(body, "max_completion_tokens", 1, None) if chat else None
    limit = limit or _integer(body, "max_tokens", 1, None)
    stops = _stops(body.get("stop"))
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequest("`stream_options` must be an object", param="stream_options")
    stream = _boolean(body, "stream")
    if options is not None and not stream:
        raise BadRequest("`stream_options` is only for `stream: true`", param="stream_options")
    repeat = not chat and _boolean(body, "echo")
    answers: list[Answer] = []
    for prompt in prompts:
        answer = _answer(prompt, stops, limit)
        if repeat:
            answer = Answer((*tokens_of(prompt), *answer.tokens), answer.finish_reason)
        answers.extend([answer] * n)
    said = _all_text(body["messages"]) if chat else prompts
    return Work(
        chat=chat,
        answers=tuple(answers),
        prompt_tokens=sum(len(tokens_of(text)) for text in said),
        stream=stream,
        include_usage=_boolean(options or {}, "include_usage"),
    )


def _answer(text: str, stops: Sequence[str], limit: int | None) -> Answer:
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    tokens = tokens_of(text[: min(found)] if found else text)
    if limit is not None and len(tokens) > limit:
        return Answer(tuple(tokens[:limit]), "length")
    return Answer(tuple(tokens), "stop")


def _last_message(messages: Any) -> str:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("`messages` is missing or empty", param="messages")
    texts = _all_text(messages)
    said_by_user = [text for message, text in zip(messages, texts, strict=True) if message["role"] == "user"]
    return (said_by_user or texts)[-1]


def _all_text(messages: Sequence[Any]) -> list[str]:
    return [_message_text(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message_text(message: Any, where: str) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest(f"`{where}` must be an object with a `role`", param=where)
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message["role"] == "assistant":
        return ""  # an assistant's message may hold tool calls only
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) == len(content) and all(isinstance(part, str) for part in parts):
            return "".join(part for part in parts if isinstance(part, str))
    raise BadRequest(f"`{where}.content` must be text, or a list of text parts", param=f"{where}.content")


def _prompts(prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) for item in prompt):
        return list(prompt)
    raise BadRequest("`prompt` must be text or a list of texts; the echo engine has no token ids", param="prompt")


def _stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if stops is None:
        return []
    if isinstance(stops, list) and all(isinstance(item, str) and item for item in stops):
        return list(stops)
    raise BadRequest("`stop` must be a text or a list of texts, none of them empty", param="stop")


def _integer(body: Mapping[str, Any], name: str, minimum: int, maximum: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    if not fits or (maximum is not None and value > maximum):
        upper = "" if maximum is None else f" and at most {maximum}"
        raise BadRequest(f"`{name}` must be an integer of at least {minimum}{upper}", param=name)
    return int(value)


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise BadRequest(f"`{name}` must be true or false", param=name)


def read_manifest(path: str) -> str:
    """The model's name from the manifest that the agent wrote. Raises OSError, ValueError."""
    manifest = json.loads(Path(path).read_text(encoding="utf-8"))
    name = manifest.get("model_name") if isinstance(manifest, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path} names no model")
    return name


async def serve(options: argparse.Namespace) -> int:
    """Load, start, and serve until SIGTERM or SIGINT; returns the exit status."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        model = read_manifest(options.manifest)
    except (OSError, ValueError) as error:
        log(f"cannot read the model manifest: {error}")
        return 1
    log(f"skyfleet echo engine, python {sys.version.split()[0]}")
    log(f"loading model {model} (an echo: there are no weights) from {options.manifest}")
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stopped.wait(), options.start_delay_s)
    if stopped.is_set():
        return 0
    if options.fail_at == "load":
        log("model could not be loaded: --fail-at load was given")
        return 1
    log(f"starting server on http://{options.host}:{options.port}")
    if options.fail_at == "start":
        log("server could not be started: --fail-at start was given")
        return 1
    app = EchoApp(model, options.tokens_per_second, options.max_concurrency)
    server = HttpServer(app.handle, error_body)
    try:
        await server.start(options.host, options.port)
    except OSError as error:
        log(f"server could not be started: {error}")
        return 1
    log(f"serving {model}")
    await stopped.wait()
    log("stopping")
    await server.stop(STOP_GRACE_S)
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the echo engine; returns its exit status."""
    parser = argparse.ArgumentParser(prog="engine-echo", description="OpenAI-compatible server that echoes.")
    parser.add_argument("--manifest", required=True, help="JSON file with model_name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens-per-second", type=float, help="pace of each answer (default: as fast as it goes)")
    parser.add_argument("--start-delay-s", type=float, default=0.0, help="seconds that loading takes")
    parser.add_argument("--max-concurrency", type=int, default=256, help="requests answered at once; others wait")
    parser.add_argument("--fail-at", choices=("load", "start"), help="exit with an error at this point")
    return asyncio.run(serve(parser.parse_args(argv)))
