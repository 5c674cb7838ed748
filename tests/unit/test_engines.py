"""Engines: arguments that are let through and refused, command lines, figures, stages, and the echo engine's HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfleet.engines import http_server
from skyfleet.engines.arguments import EngineArgumentError
from skyfleet.engines.base import EngineLaunch, EngineMetrics, EngineUnavailable
from skyfleet.engines.echo_server import EchoApp, error_body, tokens_of
from skyfleet.engines.http_server import HttpServer
from skyfleet.engines.registry import ENGINES, UnknownEngine, engine
from tests.ports import free_port
from tests.waiting import eventually

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def launch(**changes: Any) -> EngineLaunch:
    """A launch of that model; keyword arguments change it."""
    return EngineLaunch(**{"model_name": MODEL, "host": "10.0.0.7", "port": 8000, "work_dir": "/tmp", **changes})


def refusal(name: str, args: Any) -> EngineArgumentError:
    """The error of arguments that have to be refused."""
    with pytest.raises(EngineArgumentError) as caught:
        engine(name).validate_args(engine(name).normalise_args(args))
    return caught.value


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "given", "canonical"),
        [
            (
                "vllm",
                {"max-model-len": 8192, "enable_prefix_caching": True},
                ["--max-model-len", "8192", "--enable-prefix-caching"],
            ),
            ("vllm", ["--max_model_len=8192", "-tp", 2], ["--max-model-len", "8192", "--tensor-parallel-size", "2"]),
            ("vllm", {"enable-prefix-caching": False}, ["--no-enable-prefix-caching"]),
            ("vllm", {"--gpu-memory-utilization": 0.85}, ["--gpu-memory-utilization", "0.85"]),
            (
                "vllm",
                {"limit-mm-per-prompt": {"image": 2}},
                ["--limit-mm-per-prompt", '{"image":2}'],
            ),
            ("vllm", {"disable-log-requests": False}, []),
            ("sglang", ["--tp", "4"], ["--tensor-parallel-size", "4"]),
            ("llama_cpp", ["-c", "4096", "-ngl", "99"], ["--ctx-size", "4096", "--n-gpu-layers", "99"]),
            ("llama_cpp", ["--n-predict", "-1"], ["--n-predict", "-1"]),
            ("echo", {"tokens-per-second": 50}, ["--tokens-per-second", "50"]),
            ("command", [], []),
        ],
    )
    def test_accepted_and_canonical(self, name: str, given: Any, canonical: list[str]) -> None:
        assert engine(name).normalise_args(given) == canonical
        engine(name).validate_args(canonical)
        assert engine(name).normalise_args(canonical) == canonical

    @pytest.mark.parametrize(
        ("args", "argument", "reason"),
        [
            (["--made-up", "1"], "--made-up", "is not in the allow-list"),
            ({"made-up": False}, "--made-up", "is not in the allow-list"),
            (["--max-model-len"], "--max-model-len", "needs a value: an integer of at least 1"),
            (["--max-model-len", "--enforce-eager"], "--max-model-len", "needs a value"),
            (["--max-model-len", "many"], "--max-model-len", "must be an integer of at least 1"),
            (["--max-model-len", "0"], "--max-model-len", "must be an integer of at least 1"),
            (["--max-model-len", "1.5"], "--max-model-len", "must be an integer"),
            (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization", "at least 0.01 and at most 1"),
            (["--gpu-memory-utilization", "nan"], "--gpu-memory-utilization", "must be a number"),
            (["--dtype", "int3"], "--dtype", "must be one of auto, half"),
            (["--enforce-eager", "true"], "true", "is a value without an argument before it"),
            (["--enforce-eager", "--no-enforce-eager"], "--no-enforce-eager", "is given twice"),
            (["--seed", "1", "--seed", "2"], "--seed", "is given twice"),
            (["--host", "0.0.0.0"], "--host", "is set by Skyfleet"),
            (["--port=1"], "--port", "is set by Skyfleet"),
            ({"model": "other"}, "--model", "is set by Skyfleet"),
            ({"served_model_name": "other"}, "--served-model-name", "is set by Skyfleet"),
            ({"api-key": "sk-1"}, "--api-key", "a secret there can be read in the process list"),
            ({"trust-remote-code": True}, "--trust-remote-code", "would run code that comes with the model"),
            ({"trust-remote-code": False}, "--trust-remote-code", "would run code that comes with the model"),
            ({"chat-template": "/etc/passwd"}, "--chat-template", "reads files of the machine"),
            ({"tokenizer": "../../etc"}, "--tokenizer", "must not leave the engine's folder"),
            ({"tokenizer": "org/../../etc"}, "--tokenizer", "must not leave the engine's folder"),
            ({"tokenizer": "/etc/passwd"}, "--tokenizer", "must not be an absolute path"),
            ({"revision": "main\nrm -rf"}, "--revision", "characters that are not allowed: U+000A"),
            ({"seed": None}, "--seed", "leave it out"),
            ({"rope-scaling": {"rope_type": "yarn", "code": 1}}, "--rope-scaling", "has the key 'code'"),
            ({"rope-scaling": "[1]"}, "--rope-scaling", "must be a JSON object"),
            ({"speculative-config": {"model": "../x"}}, "--speculative-config.model", "must not leave"),
            ({"speculative-config": {"model": ["x"]}}, "--speculative-config.model", "must be a string, a number"),
            ([["--seed"]], '["--seed"]', "an argument is a string or a number"),
            ([True], "true", "an argument is a string or a number"),
            ("--seed 1", "args", "not one string"),
            (["--revision", "a" * 3000], "--revision", "is longer than"),
        ],
    )
    def test_refused_with_the_reason(self, args: Any, argument: str, reason: str) -> None:
        error = refusal("vllm", args)
        assert error.argument == argument
        assert reason in error.reason

    def test_a_refusal_says_what_would_be_accepted(self) -> None:
        assert "--max-model-len" in refusal("vllm", ["--nope"]).accepted
        assert refusal("vllm", ["--dtype", "x"]).accepted == list(engine("vllm").allowed_args["--dtype"].choices)
        assert refusal("vllm", ["--seed", "x"]).accepted == ["an integer of at least 0"]

    @pytest.mark.parametrize("name", sorted(ENGINES))
    @pytest.mark.parametrize("char", [*";&|`$()<>\\\n\r\0!*?~#'", "\x1b", "\u202e"])
    def test_shell_metacharacters_are_refused_everywhere(self, name: str, char: str) -> None:
        for argument, rule in engine(name).allowed_args.items():
            value = json.dumps({rule.keys[0]: f"a{char}b"}, ensure_ascii=False) if rule.kind == "json" else f"1{char}2"
            refusal(name, [argument, value])
        refusal(name, [f"--x{char}y", "1"])
        refusal(name, [char])

    @pytest.mark.parametrize("name", sorted(ENGINES))
    def test_nothing_is_both_allowed_and_refused(self, name: str) -> None:
        chosen = engine(name)
        assert not set(chosen.allowed_args) & set(chosen.refused)
        aliases = [alias for argument in chosen.allowed_args.values() for alias in argument.aliases]
        assert len(aliases) == len(set(aliases))
        assert not set(aliases) & (set(chosen.allowed_args) | set(chosen.refused))

    @given(st.lists(st.one_of(st.text(max_size=30), st.integers(), st.sampled_from(["--seed", "-tp", "--dtype"]))))
    def test_any_input_is_harmless_or_refused(self, args: list[Any]) -> None:
        try:
            tokens = engine("vllm").normalise_args(args)
            engine("vllm").validate_args(tokens)
        except EngineArgumentError:
            return
        assert all(token.isprintable() and not set(token) & set(";&|`$()<>") for token in tokens)

    def test_a_command_is_for_the_command_engine_only(self) -> None:
        with pytest.raises(EngineArgumentError, match="only for the engine `command`"):
            engine("vllm").validate_command(["server"])
        engine("vllm").validate_command([])
        engine("command").validate_command(["/opt/server", "--port", "{port}"])
        for bad in ([], ["/bin/sh", "-c", "x {port}"], ["bash", "-lc", "{port}"], ["server"], ["server", "{port}\n"]):
            with pytest.raises(EngineArgumentError):
                engine("command").validate_command(bad)


class TestCommands:
    def test_vllm(self) -> None:
        start = launch(model_source="s3://weights/llama", args=("--max-model-len", "8192"))
        assert engine("vllm").command(start) == [
            *("vllm", "serve", "s3://weights/llama", "--served-model-name", MODEL),
            *("--host", "10.0.0.7", "--port", "8000", "--load-format", "runai_streamer", "--max-model-len", "8192"),
        ]

    def test_vllm_loads_as_it_is_told(self) -> None:
        told = launch(model_source="s3://weights/llama", args=("--load-format", "safetensors"))
        assert engine("vllm").command(told).count("--load-format") == 1
        assert "--load-format" not in engine("vllm").command(launch())

    def test_vllm_takes_the_context_that_there_is_room_for(self) -> None:
        assert engine("vllm").command(launch())[-2:] == ["--max-model-len", "auto"]

    def test_sglang_has_its_metrics_on(self) -> None:
        command = engine("sglang").command(launch(python="/usr/bin/python3"))
        assert command[:5] == ["/usr/bin/python3", "-m", "sglang.launch_server", "--model-path", MODEL]
        assert "--enable-metrics" in command

    @pytest.mark.parametrize(
        ("source", "arguments"),
        [
            ("/models/a.gguf", ["--model", "/models/a.gguf"]),
            ("https://host/a.gguf", ["--model-url", "https://host/a.gguf"]),
            ("ggml-org/model:Q4_K_M", ["--hf-repo", "ggml-org/model:Q4_K_M"]),
        ],
    )
    def test_llama_cpp(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, arguments: list[str]
    ) -> None:
        server = tmp_path / "llama-server"
        server.touch(mode=0o755)
        monkeypatch.setenv("LLAMA_SERVER", str(server))
        command = engine("llama_cpp").command(launch(model_source=source))
        assert command[:3] == [str(server), *arguments]
        assert "--metrics" in command
        assert command[command.index("--alias") + 1] == MODEL

    def test_llama_cpp_says_what_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        llama = engine("llama_cpp")
        monkeypatch.setenv("LLAMA_SERVER", str(tmp_path / "nowhere"))
        assert "not an executable file" in (llama.available(str(tmp_path)) or "")
        monkeypatch.delenv("LLAMA_SERVER")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "not installed" in (llama.available(str(tmp_path)) or "")
        server = tmp_path / "llama-server"
        server.touch(mode=0o755)
        assert llama.available(str(tmp_path)) is None
        with pytest.raises(EngineUnavailable, match="does not exist"):
            llama.prepare(launch(model_source=str(tmp_path / "no.gguf")))
        with pytest.raises(EngineUnavailable, match="not s3://"):
            llama.prepare(launch(model_source="s3://bucket/a.gguf"))

    def test_llama_cpp_makes_the_links_that_a_wheel_cannot_carry(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "llama-server").touch(mode=0o755)
        (tmp_path / "libllama.so.0.6.0").write_text("library")
        notes = {"libllama.so.0": "libllama.so.0.6.0", "../outside": "libllama.so.0.6.0"}
        (tmp_path / "_symlinks.json").write_text(json.dumps(notes))
        monkeypatch.setenv("LLAMA_SERVER", str(tmp_path / "llama-server"))
        for _ in range(2):
            engine("llama_cpp").prepare(launch())
        assert (tmp_path / "libllama.so.0").read_text() == "library"
        assert not (tmp_path.parent / "outside").exists()

    def test_command_fills_in_its_placeholders_within_their_own_elements(self) -> None:
        own = ("srv", "--bind={host}:{port}", "{model}", "{other}", "{source}")
        command = engine("command").command(launch(command=own, model_name="a {port}; b", model_source="/m"))
        assert command == ["srv", "--bind=10.0.0.7:8000", "a {port}; b", "{other}", "/m"]

    def test_unknown_engine_lists_those_that_exist(self) -> None:
        with pytest.raises(UnknownEngine, match="command, echo, llama_cpp, sglang, vllm"):
            engine("nope")

    def test_engines_that_are_not_installed_say_so(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "no `vllm` on PATH" in (engine("vllm").available("/tmp") or "")
        assert "SGLang is not installed" in (engine("sglang").available("/tmp") or "")
        assert engine("echo").available("/tmp") is None


VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b \\"c\\""} 3.0
vllm:num_requests_running{engine="1",model_name="x"} 2.0
vllm:num_requests_waiting{engine="0",model_name="x"} 7.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:generation_tokens_total{engine="0"} 1.5e+06
vllm:generation_tokens_created{engine="0"} 1.7e+09
vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 9
"""


class TestMetrics:
    def test_vllm_ranks_are_summed_and_the_fullest_cache_counts(self) -> None:
        assert engine("vllm").parse_metrics(VLLM_METRICS) == EngineMetrics(5, 7, 0.75, 1_500_000.0)

    def test_vllm_before_0_10(self) -> None:
        text = "vllm:gpu_cache_usage_perc 0.5 1700000000000\nvllm:num_requests_running NaN\n"
        assert engine("vllm").parse_metrics(text) == EngineMetrics(kv_cache_usage=0.5)

    def test_sglang(self) -> None:
        text = (
            'sglang:num_running_reqs{model_name="m"} 1.0\nsglang:num_queue_reqs{model_name="m"} 0.0\n'
            'sglang:token_usage{model_name="m"} 0.28\nsglang:generation_tokens_total{model_name="m"} 42\n'
        )
        assert engine("sglang").parse_metrics(text) == EngineMetrics(1, 0, 0.28, 42.0)

    def test_llama_cpp(self) -> None:
        text = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\nllamacpp:tokens_predicted_total 5\n"
        assert engine("llama_cpp").parse_metrics(text) == EngineMetrics(1, 2, None, 5.0)

    def test_what_is_not_said_is_unknown(self) -> None:
        for text in ("", "<html>502</html>", "vllm:num_requests_running{", "vllm:num_requests_running many"):
            assert engine("vllm").parse_metrics(text) == EngineMetrics()


@pytest.mark.parametrize(
    ("name", "line", "stage"),
    [
        ("vllm", "(EngineCore_DP0 pid=66914) INFO [gpu_model_runner.py:2530] Starting to load model a/b...", "LOAD"),
        ("vllm", "Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]", "LOAD"),
        (
            "vllm",
            "INFO 11-24 [gpu_model_runner.py:3341] Model loading took 2.0513 GiB memory and 27.2 seconds",
            "START",
        ),
        ("vllm", "INFO 06-02 11:03:56 [api_server.py:1336] Starting vLLM API server on http://0.0.0.0:8000", "START"),
        (
            "vllm",
            "INFO 06-02 11:03:55 [core.py:167] init engine (profile, create kv cache) took 90.84 seconds",
            "START",
        ),
        ("vllm", "INFO 06-02 [api_server.py:1] vLLM API server version 0.11.0", None),
        ("sglang", "[2025-12-23 14:18:01] Load weight begin. avail mem=46.81 GB", "LOAD"),
        ("sglang", "[2025-12-23 14:18:09 TP0] Load weight end. elapsed=8 s, type=LlamaForCausalLM", "START"),
        ("sglang", "[2026-07-31 12:00:00] Capture target decode CUDA graph begin. bs=[1,2]", "START"),
        ("sglang", "[2025-12-23 14:17:57] Init torch distributed begin.", None),
        ("llama_cpp", "0.00.012.077 I srv    load_model: loading model 'tiny.gguf'", "LOAD"),
        ("llama_cpp", "0.00.019.651 I srv    load_model: initializing, n_slots = 4, n_ctx_slot = 512", "START"),
        ("llama_cpp", "main: HTTP server is listening, hostname: 127.0.0.1, port: 8080, http threads: 3", None),
        ("command", "loading model", None),
    ],
)
def test_stages_are_read_from_real_log_lines(name: str, line: str, stage: str | None) -> None:
    stages = {"LOAD": "LOADING_MODEL", "START": "STARTING_ENGINE", None: None}
    assert engine(name).stage_of(line) == stages[stage]


class Echo:
    """An echo server in this process, on a free port."""

    def __init__(self, app: EchoApp) -> None:
        self.app = app
        self.server = HttpServer(app.handle, error_body)
        self.port = 0

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """One request; its status and its JSON (or text)."""

        def go() -> tuple[int, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, raw, headers)
            response = connection.getresponse()
            text = response.read().decode()
            connection.close()
            return response.status, json.loads(text) if text.startswith("{") else text

        return await asyncio.to_thread(go)

    async def chat(self, text: str, **more: Any) -> tuple[int, Any]:
        """One chat request."""
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]
        return await self.ask("POST", "/v1/chat/completions", {"model": MODEL, "messages": messages, **more})

    async def raw(self, data: bytes) -> bytes:
        """Whatever comes back for these bytes, until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer


async def start_echo(**options: Any) -> Echo:
    """An echo server; the caller stops it."""
    echo = Echo(EchoApp(MODEL, **options))
    echo.port = free_port()
    await echo.server.start("127.0.0.1", echo.port)
    return echo


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """An echo server that is as fast as it goes."""
    server = await start_echo()
    yield server
    await server.server.stop(0)


def events(text: str) -> list[Any]:
    """The server-sent events of a stream, `[DONE]` as a string."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [data if data == "[DONE]" else json.loads(data) for data in (line[6:] for line in lines)]


class TestEcho:
    async def test_chat(self, echo: Echo) -> None:
        status, answer = await echo.chat("say  this\n back")
        assert status == 200
        assert answer["object"] == "chat.completion"
        assert answer["model"] == MODEL
        assert answer["system_fingerprint"] == "skyfleet-echo"
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": "say  this\n back"}
        assert choice["finish_reason"] == "stop"
        assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}

    async def test_chat_stream(self, echo: Echo) -> None:
        status, text = await echo.chat("one two", stream=True, n=2, stream_options={"include_usage": True})
        assert status == 200
        *chunks, done = events(text)
        assert done == "[DONE]"
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        *said, usage = chunks
        assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)
        assert all(chunk["usage"] is None for chunk in said)
        for index in (0, 1):
            mine = [c["choices"][0] for c in said if c["choices"][0]["index"] == index]
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            assert [c["delta"].get("content", "") for c in mine] == ["", "one", " two", ""]
            assert [c["finish_reason"] for c in mine] == [None, None, None, "stop"]

    async def test_stream_without_usage_has_none(self, echo: Echo) -> None:
        _, text = await echo.chat("one", stream=True)
        assert all("usage" not in chunk for chunk in events(text)[:-1])

    async def test_completions(self, echo: Echo) -> None:
        body = {"model": MODEL, "prompt": ["a b", "c d"], "n": 2, "max_tokens": 1, "echo": True}
        status, answer = await echo.ask("POST", "/v1/completions", body)
        assert status == 200
        assert answer["object"] == "text_completion"
        assert [c["text"] for c in answer["choices"]] == ["a ba", "a ba", "c dc", "c dc"]
        assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
        assert {c["finish_reason"] for c in answer["choices"]} == {"length"}
        status, text = await echo.ask("POST", "/v1/completions", {"model": MODEL, "prompt": "x y", "stream": True})
        assert "".join(c["choices"][0]["text"] for c in events(text)[:-1]) == "x y"

    @pytest.mark.parametrize(
        ("more", "text", "reason"),
        [
            ({"max_tokens": 2}, "one two", "length"),
            ({"max_completion_tokens": 1, "max_tokens": 3}, "one", "length"),
            ({"max_tokens": 4}, "one two three four", "stop"),
            ({"stop": " three"}, "one two", "stop"),
            ({"stop": ["four", "two"]}, "one ", "stop"),
            ({"stop": "absent"}, "one two three four", "stop"),
        ],
    )
    async def test_limits(self, echo: Echo, more: dict[str, Any], text: str, reason: str) -> None:
        _, answer = await echo.chat("one two three four", **more)
        assert answer["choices"][0]["message"]["content"] == text
        assert answer["choices"][0]["finish_reason"] == reason

    async def test_content_in_parts_and_odd_text(self, echo: Echo) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "é "}, {"type": "text", "text": "\ud800世"}]}]
        _, answer = await echo.ask("POST", "/v1/chat/completions", {"model": MODEL, "messages": messages})
        assert answer["choices"][0]["message"]["content"] == "é \ud800世"

    @pytest.mark.parametrize(
        ("body", "status", "param"),
        [
            (b"{not json", 400, None),
            (b"[1]", 400, None),
            (b"[" * 100_000, 400, None),
            ({"messages": [{"role": "user", "content": "x"}]}, 400, "model"),
            ({"model": MODEL}, 400, "messages"),
            ({"model": MODEL, "messages": []}, 400, "messages"),
            ({"model": MODEL, "messages": ["x"]}, 400, "messages[0]"),
            ({"model": MODEL, "messages": [{"role": "user"}]}, 400, "messages[0].content"),
            (
                {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                400,
                "messages[0].content",
            ),
            ({"model": "other", "messages": [{"role": "user", "content": "x"}]}, 404, "model"),
            ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "n": 0}, 400, "n"),
            ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "n": True}, 400, "n"),
            ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": "5"}, 400, "max_tokens"),
            ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stop": [""]}, 400, "stop"),
            ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": "yes"}, 400, "stream"),
            (
                {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream_options": {}},
                400,
                "stream_options",
            ),
        ],
    )
    async def test_bad_requests(self, echo: Echo, body: Any, status: int, param: str | None) -> None:
        answered, answer = await echo.ask("POST", "/v1/chat/completions", body)
        assert answered == status
        assert answer["error"]["param"] == param
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["message"]

    async def test_routes(self, echo: Echo) -> None:
        status, answer = await echo.ask("GET", "/v1/models")
        assert (status, [model["id"] for model in answer["data"]]) == (200, [MODEL])
        assert (await echo.ask("GET", f"/v1/models/{MODEL}"))[1]["id"] == MODEL
        assert (await echo.ask("GET", "/v1/models/" + MODEL.replace("/", "%2F")))[1]["id"] == MODEL
        assert (await echo.ask("GET", "/v1/models/other"))[0] == 404
        assert (await echo.ask("GET", "/health"))[0] == 200
        assert (await echo.ask("HEAD", "/health"))[0] == 200
        assert (await echo.ask("GET", "/v1/chat/completions"))[0] == 405
        assert (await echo.ask("POST", "/metrics", {}))[0] == 405
        assert (await echo.ask("GET", "/nope"))[0] == 404

    async def test_figures_are_counted(self, echo: Echo) -> None:
        await echo.chat("one two three")
        await echo.chat("one two", stream=True, max_tokens=1)
        _, text = await echo.ask("GET", "/metrics")
        assert engine("echo").parse_metrics(text) == EngineMetrics(0, 0, None, 4.0)
        assert f'model_name="{MODEL}",finished_reason="stop"}} 1' in text
        assert f'model_name="{MODEL}",finished_reason="length"}} 1' in text
        assert "vllm:prompt_tokens_total" in text

    async def test_requests_beyond_the_limit_wait_and_a_client_that_leaves_is_noticed(self) -> None:
        echo = await start_echo(tokens_per_second=20, max_concurrency=1)
        try:
            body = json.dumps({"model": MODEL, "prompt": "word " * 1000, "stream": True}).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            clients = [await asyncio.open_connection("127.0.0.1", echo.port) for _ in range(3)]
            reader, writer = clients[0]
            writer.write(head + body)
            assert b"200 OK" in await reader.readline()
            for _, other in clients[1:]:
                other.write(head + body)
            await eventually(lambda: (echo.app.running, echo.app.waiting) == (1, 2), what="one running, two waiting")
            _, text = await echo.ask("GET", "/metrics")
            assert engine("echo").parse_metrics(text).waiting == 2
            clients[1][1].close()  # leaves while it waits
            await eventually(lambda: echo.app.waiting == 1, what="the leaver noticed")
            writer.close()  # leaves in the middle of its stream
            await eventually(lambda: (echo.app.running, echo.app.waiting) == (1, 0), what="the next one running")
            generated = echo.app.generated_tokens
            clients[2][1].close()
            await eventually(lambda: (echo.app.running, echo.app.waiting) == (0, 0), what="nobody left")
            assert echo.app.finished["abort"] == 3
            assert echo.app.generated_tokens < generated + 100
        finally:
            await echo.server.stop(0)

    async def test_pace(self) -> None:
        echo = await start_echo(tokens_per_second=50)
        try:
            started = asyncio.get_running_loop().time()
            await asyncio.gather(*(echo.chat("a b c d e f g h i j") for _ in range(5)))
            took = asyncio.get_running_loop().time() - started
        finally:
            await echo.server.stop(0)
        assert took >= 0.2  # ten tokens at fifty a second; five answers at the same time

    async def test_a_stopping_server_finishes_what_it_has(self) -> None:
        echo = await start_echo(tokens_per_second=50)
        asked = asyncio.ensure_future(echo.chat("a b c d e f g h i j"))
        await eventually(lambda: echo.app.running == 1, what="a request under way")
        await echo.server.stop(5)
        assert (await asked)[0] == 200
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset
            await echo.ask("GET", "/health")


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(tokens_of(text)) == text


OK = b"HTTP/1.1 200 OK"


class TestHttp:
    async def test_keep_alive_and_pipelining(self, echo: Echo) -> None:
        get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        assert (await echo.raw(get * 3)).count(OK) == 3
        closing = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await echo.raw(closing + get)).count(OK) == 1
        assert (await echo.raw(b"GET /health HTTP/1.0\r\n\r\n" + get)).count(OK) == 1
        assert (await echo.raw(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get)).count(OK) == 2
        assert (await echo.raw(b"\r\n" + get)).count(OK) == 1

    async def test_an_error_keeps_the_connection_when_its_framing_was_right(self, echo: Echo) -> None:
        bad = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{]"
        answer = await echo.raw(bad + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.count(b"HTTP/1.1 400") == 1
        assert answer.count(OK) == 1

    async def test_chunked_body(self, echo: Echo) -> None:
        body = json.dumps({"model": MODEL, "prompt": "hello there"}).encode()
        pieces = [body[:7], body[7:]]
        chunks = b"".join(b"%X;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nTrailer: x\r\n\r\n"
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await echo.raw(head + chunks + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'"text": "hello there"' in answer
        assert answer.count(OK) == 2

    async def test_a_stream_to_http_1_0_ends_with_the_connection(self, echo: Echo) -> None:
        body = json.dumps({"model": MODEL, "prompt": "a b", "stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(body)
        reader, writer = await asyncio.open_connection("127.0.0.1", echo.port)
        writer.write(head + body)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert b"Transfer-Encoding" not in answer
        assert answer.endswith(b"data: [DONE]\n\n")

    async def test_expect_100_continue(self, echo: Echo) -> None:
        body = json.dumps({"model": MODEL, "prompt": "x"}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", echo.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body))
        assert await asyncio.wait_for(reader.readline(), 10) == b"HTTP/1.1 100 Continue\r\n"
        writer.write(body)
        assert await reader.readline() == b"\r\n"
        assert await asyncio.wait_for(reader.readline(), 10) == b"HTTP/1.1 200 OK\r\n"
        writer.close()

    @pytest.mark.parametrize(
        ("request_bytes", "status"),
        [
            (b"nonsense\r\n\r\n", 400),
            (b"GET /health HTTP/2.0\r\n\r\n", 505),
            (b"G@T /health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
            (b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 9000), 431),
            (b"GET /health HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n" % (b"a" * 9000), 431),
            (b"GET /health HTTP/1.1\r\nHost: x\r\n%b\r\n" % (b"A: b\r\n" * 200), 431),
            (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
            (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0\r\n\r\n", 400),
            (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
            (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %b1\r\n\r\n" % (b"0" * 30), 400),
            (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            (
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
            ),
            (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
            (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n", 400),
            (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFF\r\n", 413),
        ],
    )
    async def test_what_cannot_be_framed_is_refused_and_closed(
        self, echo: Echo, request_bytes: bytes, status: int
    ) -> None:
        answer = await echo.raw(request_bytes + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"Connection: close" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b'"error"' in answer

    async def test_a_client_that_sends_half_a_request_is_let_go(
        self, echo: Echo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http_server, "READ_TIMEOUT_S", 0.1)
        reader, writer = await asyncio.open_connection("127.0.0.1", echo.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()

    async def test_a_defect_of_ours_is_a_500_and_the_server_lives_on(
        self, echo: Echo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(echo.app, "_metrics", lambda: 1 / 0)
        status, answer = await echo.ask("GET", "/metrics")
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "ZeroDivisionError" in capsys.readouterr().err
        assert (await echo.ask("GET", "/health"))[0] == 200

    async def test_many_at_once(self, echo: Echo) -> None:
        answers = await asyncio.gather(*(echo.chat(f"number {n}") for n in range(50)))
        said = [answer["choices"][0]["message"]["content"] for status, answer in answers if status == 200]
        assert said == [f"number {n}" for n in range(50)]


def test_engines_need_the_standard_library_alone() -> None:
    """Every module of the agent and of the engines imports in an interpreter without site packages."""
    root = Path(http_server.__file__).parents[2]
    modules = [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for package in ("agent", "engines")
        for path in sorted((root / "skyfleet" / package).glob("*.py"))
        if path.stem not in ("__init__", "__main__")
    ]
    assert len(modules) > 20
    script = f"import sys; sys.path.insert(0, {str(root)!r})\nimport " + ", ".join(modules)
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, timeout=30)
