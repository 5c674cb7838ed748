"""The commands, against an API on a real socket: what they print, what they send, and how they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from skyfleet import client as client_module
from skyfleet.cli.main import app
from tests.cli.fake_api import ERROR, JOB, NODE, FakeApi, problem, served
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKYFLEET_DATA", str(tmp_path))
    monkeypatch.setattr(client_module._Tries, "_pause", lambda self: 0.0)
    for name in ("SKYFLEET_API", "SKYFLEET_TOKEN", "SKYFLEET_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def url(api: FakeApi) -> Iterator[str]:
    with served(api) as address:
        yield address


class Sky:
    """Runs the command line in this process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(app, ["--api", self.url, "--token", "sf_key", *arguments], input=stdin)


@pytest.fixture
def sky(url: str) -> Sky:
    return Sky(url)


def documents(result: Result) -> list[dict[str, Any]]:
    """Everything on standard output, which must be JSON, one document a line."""
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- launch -------------------------------------------------------------------------------------------------


def test_a_launch_is_followed_and_its_end_shown(sky: Sky) -> None:
    result = sky("launch", "org/model")
    assert result.exit_code == 0
    for part in (JOB, "sandbox", "about 90 s", "45%", ERROR["message"], "✓ ready", NODE["endpoint_url"], "$0.4024/h"):
        assert part in result.stdout


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [("FAILED", None, 1), ("CANCELLED", None, 6), ("FAILED", "timeout", 7), ("READY", None, 0)],
)
def test_the_exit_code_says_how_a_launch_ended(api: FakeApi, sky: Sky, end: str, status: str | None, code: int) -> None:
    api.end, api.status = end, status
    assert sky("launch", "org/model").exit_code == code
    assert sky("events", JOB, "--follow").exit_code == code
    assert sky("launch", "org/model", "--json").exit_code == code


def test_a_failed_launch_shows_each_attempt_the_error_and_what_to_try(api: FakeApi, sky: Sky) -> None:
    api.end = "FAILED"
    shown = sky("launch", "org/model").stdout
    for part in ("aws/us-east-1a", "spot", ERROR["message"], "try: buy on-demand", ERROR["raw"]):
        assert part in shown


def test_the_options_become_the_request(api: FakeApi, sky: Sky) -> None:
    options = (
        "--provider aws --region us-east-1 --zone us-east-1a --instance-type g5.xlarge --spot "
        "--fallback-region us-west-2 --fallback-region eu-west-1 "
        "--fallback-cloud any --fallback-on-demand --max-hourly-cost $1.20 --deployment d "
        "--engine vllm --engine-arg max-model-len=4096 --engine-arg --enforce-eager --env A=b=c --tag team=x "
        "--provision-deadline 15m --registration-deadline 90 --max-attempts 3 --idempotency-key k"
    )
    assert sky("launch", "org/model", *options.split()).exit_code == 0
    method, _, headers, body = api.requests[0]
    assert method == "POST"
    assert headers["idempotency-key"] == "k"
    assert body == {
        "model_name": "org/model",
        "provider": "aws",
        "region": "us-east-1",
        "zone": "us-east-1a",
        "instance_type": "g5.xlarge",
        "use_spot": True,
        "max_hourly_cost": "1.20",
        "max_attempts": 3,
        "deployment": "d",
        "engine": "vllm",
        "engine_args": ["--max-model-len=4096", "--enforce-eager"],
        "env": {"A": "b=c"},
        "tags": {"team": "x"},
        "fallback": {"regions": ["us-west-2", "eu-west-1"], "clouds": "any", "on_demand": True},
        "deadlines": {"provision_seconds": 900.0, "registration_seconds": 90.0},
    }


def test_the_request_is_one_that_the_api_takes(api: FakeApi, sky: Sky) -> None:
    schemas = pytest.importorskip("api.schemas")
    options = (
        "--spot --fallback-region any --max-hourly-cost 1.2 --engine-command 'run --port 80' --provision-deadline 1h"
    )
    import shlex

    sky("launch", "org/model", *shlex.split(options))
    request = schemas.LaunchRequest.model_validate(api.requests[0][3])
    assert request.engine_command == ["run", "--port", "80"]
    assert request.fallback.regions == "any"
    sky("models", "add", "org/model", "--parameters", "1.5e9", "--context-length", "4096")
    assert schemas.ModelRequest.model_validate(api.requests[-1][3]).parameters == 1_500_000_000
    sky("api-keys", "create", "ci", "--role", "operator", "--expires", "2027-01-31T18:00")
    assert schemas.ApiKeyRequest.model_validate(api.requests[-1][3]).expires_at is not None


def test_detach_prints_the_id_and_nothing_else(api: FakeApi, sky: Sky) -> None:
    api.end = "PROVISIONING"
    assert sky("launch", "org/model", "--detach").stdout == f"{JOB}\n"
    (document,) = documents(sky("launch", "org/model", "--detach", "--json"))
    assert document["job_id"] == JOB


def test_json_of_a_launch_is_a_line_for_each_thing(sky: Sky) -> None:
    lines = documents(sky("launch", "org/model", "--json"))
    assert [line["type"] for line in lines] == ["accepted", *["event"] * 6, "status"]
    assert lines[-1]["status"] == "completed"


def test_ctrl_c_leaves_the_launch_running(api: FakeApi, url: str) -> None:
    api.end = "PROVISIONING"
    child = subprocess.Popen(
        [sys.executable, "-m", "skyfleet.cli", "--api", url, "launch", "org/model"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # Tests that a shell runs in the background inherit an ignored SIGINT, which a person's terminal never gives.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it does no more than that
    )
    assert child.stdout is not None
    while "provisioning" not in child.stdout.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert f"skyfleet cancel {JOB}" in errors
    assert f"skyfleet events {JOB} --follow" in errors
    assert not api.seen("DELETE", f"/admin/instances/launch/{JOB}")


def test_the_bar_shows_the_furthest_stage_that_was_seen_and_goes_back_for_a_new_attempt() -> None:
    from skyfleet.cli.launching import _Bar
    from skyfleet.domain.views import LaunchEvent
    from tests.cli.fake_api import event

    shown: list[int] = []

    class Progress:
        class console:
            @staticmethod
            def print(_: object) -> None: ...

        @staticmethod
        def update(_: object, *, completed: int | None = None, description: str = "") -> None:
            if completed is not None:
                shown.append(completed)

    bar = _Bar(Progress, None)
    for number, stage in enumerate(("QUEUED", "VALIDATING", "PROVISIONING", "TEARING_DOWN", "PLANNING", "REQUESTING")):
        bar.event(LaunchEvent.model_validate(event(number + 1, stage, stage)))
    assert shown == [10, 45, 10, 25]


# --- the other commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["status", JOB], [JOB, "completed", "✓ validating configuration", "sandbox", "http://127.0.0.1:8233"]),
        (["launches", "--status", "failed"], [JOB, "aws/us-east-1a", "$0.4024/h", "sandbox", "--cursor c2"]),
        (["nodes"], [NODE["node_id"], "ready", NODE["endpoint_url"], "sandbox"]),
        (["node", NODE["node_id"]], [NODE["cluster_name"], "serving", "sandbox"]),
        (["models"], ["org/model", "2.4 GB", "1.9 GB", "bfloat16", "4,096", "bucket"]),
        (["models", "show", "org/model"], ["s3://weights/org/model/", "0.2 GB  (26,214 bytes a token", "by and large"]),
        (["models", "show", "org/model", "--concurrency", "64"], ["for 64 sequences of 4,096 tokens", "6.4 GB"]),
        (["models", "bucket"], ["s3://weights · 3 models"]),
        (["models", "refresh"], ["s3://weights: being read"]),
        (["offers", "--model", "org/model", "--all"], ["g5.xlarge", "$0.4024/h", "60%", "too small", "sandbox"]),
        (["offers", "--gpu", "A10G"], ["g5.xlarge", "$0.4024/h", "60%", "aws/us-east-1a"]),
        (["providers"], ["✓", "aws", "118", "$0.4024/h", "✗", "azure", "no token. Run:", "SkyPilot does not answer"]),
        (["providers", "show", "Azure"], ["azure · not enabled", "  $ az login", "skypilot"]),
        (["providers", "show", "aws"], ["aws · enabled", "A10G, H100", "us-east-1", "$0.4024/h"]),
        (["providers", "refresh"], ["being checked"]),
        (["api-keys"], ["abc", "operator"]),
        (["audit"], ["launch.create", "model=org/model"]),
        (["notifications"], ["launch_failed", JOB, "on-call: sent", "old: failed (error=500)", "--cursor 7"]),
        (["channels"], ["on-call", "Slack", "slack://****", "node_lost", "10 in 300 s"]),
        (["channels", "list"], ["on-call", "Slack", "slack://****"]),
        (["channels", "add", "on-call", "slack://a/b/c"], ["on-call: Slack at slack://****"]),
        (["channels", "set", "on-call", "--off"], ["on-call: Slack"]),
        (["channels", "test", "on-call"], ["on-call: taken (0.4 s)"]),
        (["channels", "remove", "on-call"], ["on-call: removed"]),
        (["health"], ["healthy", "sandbox"]),
        (["cancel", JOB], ["cancelling"]),
        (["terminate", NODE["node_id"]], ["terminating"]),
        (["models", "remove", "org/model"], ["removed"]),
        (["models", "add", "org/model", "--vram", "2.4"], ["needs 2.4 GB"]),
        (["api-keys", "create", "ci"], ["sf_abc_secret"]),
        (["api-keys", "revoke", "abc"], ["revoked"]),
        (["events", JOB], ["accepted", "ready"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_each_command_for_people_and_for_scripts(sky: Sky, command: list[str], parts: list[str]) -> None:
    result = sky(*command)
    assert result.exit_code == 0, result.output
    for part in parts:
        assert part in result.stdout
    as_json = sky(*command, "--json")
    assert as_json.exit_code == 0
    assert documents(as_json)


def test_a_json_document_is_the_api_s_answer(sky: Sky) -> None:
    (status,) = documents(sky("status", JOB, "--json"))
    assert status["attempts"][0]["hourly_price"] == "0.402400"
    assert documents(sky("nodes", "--json"))[0]["nodes"][0]["sandbox"] is True


def test_cancel_waits_for_the_cloud(api: FakeApi, sky: Sky) -> None:
    api.end = "CANCELLED"
    assert sky("cancel", JOB, "--wait").exit_code == 0
    api.end = "READY"
    assert sky("cancel", JOB, "--wait").exit_code == 1


def test_terminate_waits_for_the_cloud_with_a_deadline(api: FakeApi, sky: Sky) -> None:
    api.node_polls = 2
    result = sky("terminate", NODE["node_id"], "--wait")
    assert result.exit_code == 0
    assert "confirmed by aws" in result.stdout
    api.node_polls = 1000
    assert sky("terminate", NODE["node_id"], "--wait", "--timeout", "0.1").exit_code == 7


def test_a_refresh_waits_until_the_bucket_is_read(api: FakeApi, sky: Sky) -> None:
    api.bucket_polls = 2
    api.bucket["skipped"] = [{"path": "org/broken", "reason": "no weights"}]
    result = sky("models", "refresh", "--wait")
    assert result.exit_code == 0, result.output
    assert api.bucket_polls < 0
    assert "org/broken" in result.stdout
    assert "no weights" in result.stdout
    api.bucket_polls = 1000
    assert sky("models", "refresh", "--wait", "--timeout", "0.1").exit_code == 7
    api.bucket_polls = 0
    api.bucket["error"] = "NoSuchBucket"
    failed = sky("models", "refresh", "--wait")
    assert failed.exit_code == 1
    assert "NoSuchBucket" in failed.stderr


def test_a_refresh_waits_until_the_clouds_are_checked(api: FakeApi, sky: Sky) -> None:
    api.provider_polls = 2
    result = sky("providers", "refresh", "--wait")
    assert result.exit_code == 0, result.output
    assert api.provider_polls < 0
    assert "azure" in result.stdout
    api.provider_polls = 1000
    late = sky("providers", "refresh", "--wait", "--timeout", "0.1")
    assert late.exit_code == 7
    assert "skypilot: SkyPilot does not answer" in late.stderr


def test_offers_for_a_model_are_those_that_it_fits(api: FakeApi, sky: Sky) -> None:
    sky("offers", "--model", "org/model", "--provider", "aws", "--market", "spot")
    sky("offers", "--model", "org/model", "--all")
    sky("offers", "--gpu", "A10G")
    limit = {"limit": "50"}
    assert api.offers_asked == [
        {"model_name": "org/model", "fits": "true", "provider": "aws", "market": "spot", **limit},
        {"model_name": "org/model", **limit},
        {"gpu": "A10G", **limit},
    ]
    api.on_sale = 0
    assert "Nothing that is on sale fits org/model; --all shows why." in sky("offers", "--model", "org/model").stdout


def test_a_table_shows_the_cheapest_and_a_script_gets_all(api: FakeApi, sky: Sky) -> None:
    api.on_sale = 4_321
    shown = sky("offers").stdout
    assert shown.count("g5.xlarge") == 50
    assert "The 50 cheapest of 4,321; narrow it down, or give --limit." in shown
    shown = sky("offers", "--limit", "2500").stdout
    assert shown.count("g5.xlarge") == 2_500
    (document,) = documents(sky("offers", "--json"))
    assert (len(document["offers"]), document["total"]) == (4_321, 4_321)
    (document,) = documents(sky("offers", "--json", "--limit", "7"))
    assert (len(document["offers"]), document["total"]) == (7, 4_321)


def test_what_is_not_there_is_said(api: FakeApi, sky: Sky) -> None:
    assert sky("models", "show", "org/other").exit_code == 3
    missing = sky("providers", "show", "nowhere")
    assert missing.exit_code == 3
    assert "there are: aws, azure" in missing.stderr
    api.bucket = {"url": None}
    assert "SKYFLEET_MODEL_BUCKET_URL" in sky("models", "bucket").stdout


def test_a_configuration_is_sent_as_it_is(api: FakeApi, sky: Sky, tmp_path: Path) -> None:
    schemas = pytest.importorskip("api.schemas")
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama"}')
    assert (
        sky("models", "add", "org/model", "--weights", "5.3", "--dtype", "int4", "--config", str(path)).exit_code == 0
    )
    request = schemas.ModelRequest.model_validate(api.requests[-1][3])
    assert (request.weights_gb, request.dtype, request.config) == (5.3, "int4", {"model_type": "llama"})
    path.write_text("{")
    assert sky("models", "add", "org/model", "--weights", "5.3", "--config", str(path)).exit_code == 2


def test_a_channel_is_made_with_its_rules_and_its_address_can_come_by_a_pipe(api: FakeApi, sky: Sky) -> None:
    rules = ["--kind", "node_lost", "--kind", "orphan_found", "--tenant", "a", "--min-severity", "warning"]
    throttle = ["--at-most", "5", "--period", "15m"]
    assert sky("channels", "add", "on-call", "-", *rules, *throttle, stdin="slack://a/b/c\n").exit_code == 0
    sky("channels", "set", "on-call", "--off")
    assert [body for _, _, _, body in api.requests] == [
        {
            "name": "on-call",
            "url": "slack://a/b/c",
            "kinds": ["node_lost", "orphan_found"],
            "tenants": ["a"],
            "min_severity": "warning",
            "throttle_count": 5,
            "throttle_seconds": 900,
        },
        {"enabled": False},
    ]


def test_a_test_message_that_is_not_taken_leaves_with_1(api: FakeApi, sky: Sky) -> None:
    api.taken = False
    result = sky("channels", "test", "on-call")
    assert result.exit_code == 1
    assert "NOT taken: error=404" in result.stdout


def test_health_leaves_with_1_when_something_is_away(api: FakeApi, sky: Sky) -> None:
    api.healthy = False
    result = sky("health")
    assert result.exit_code == 1
    assert "temporal: away" in result.stdout


def test_explain_error_passes_its_arguments_on(sky: Sky) -> None:
    raw = "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation"
    result = sky("explain-error", "--cloud", "aws", "--json", stdin=raw)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["kind"] == "capacity"
    assert sky("explain-error", "--cloud", "aws", stdin="").exit_code == 2
    assert sky("explain-error", stdin=raw).exit_code == 2


# --- exit codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(401, 4), (403, 4), (404, 3), (422, 1), (409, 1), (500, 1)])
def test_what_the_api_refuses(api: FakeApi, sky: Sky, status: int, code: int) -> None:
    api.answers = [problem(status, "because of that")]
    result = sky("nodes")
    assert result.exit_code == code
    assert "because of that" in result.stderr
    assert result.stdout == ""
    api.answers = [problem(status, "because of that")]
    as_json = sky("nodes", "--json")
    assert as_json.exit_code == code
    assert json.loads(as_json.stderr)["error"]["status"] == status
    assert as_json.stdout == ""


def test_nobody_there() -> None:
    result = Sky("http://127.0.0.1:1")("nodes")
    assert result.exit_code == 5
    assert "skyfleet up" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch"],
        ["launch", "m", "--max-hourly-cost", "-1"],
        ["launch", "m", "--provision-deadline", "soon"],
        ["launch", "m", "--env", "NAME"],
        ["launch", "m", "--fallback-on-demand"],
        ["launch", "m", "--engine-command", "'"],
        ["launches", "--status", "nope"],
        ["models", "add", "m"],
        ["api-keys", "create", "n", "--expires", "tomorrow"],
        ["channels", "add", "on-call"],
        ["channels", "add", "on-call", "slack://a/b/c", "--kind", "nope"],
        ["nope"],
    ],
)
def test_wrong_usage_is_2_and_asks_nobody(api: FakeApi, sky: Sky, arguments: list[str]) -> None:
    assert sky(*arguments).exit_code == 2
    assert api.requests == []


def test_a_defect_is_not_hidden(sky: Sky, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(client_module.SkyfleetClient, "nodes", broken)
    assert isinstance(sky("nodes").exception, ZeroDivisionError)


async def test_help_is_quick() -> None:
    def run() -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "skyfleet.cli", "--help"], cwd=ROOT, check=True, capture_output=True)
        return time.monotonic() - began

    # The machine may be busy with other tests: it counts that it can be quick.
    await eventually(lambda: run() < 0.5, timeout_s=20, what="skyfleet --help in under 0.5 s")


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = ("httpx", "pydantic", "temporalio", "sqlalchemy", "streamlit", "asyncpg", "skyfleet.client")
    code = f"import sys, skyfleet.cli.main; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


def test_run_leaves_with_the_command_s_status(url: str) -> None:
    def code(*arguments: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "skyfleet.cli", *arguments], cwd=ROOT, capture_output=True
        ).returncode

    assert code("version") == 0
    assert code("nope") == 2
    assert code("--api", url, "node", "unknown") == 3
