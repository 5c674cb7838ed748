"""The HTTP client: credentials, errors, retries, and following a launch through broken connections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from skyfleet import client as client_module
from skyfleet.client import ApiError, ApiUnreachable, AsyncSkyfleetClient, SkyfleetClient, resolve
from skyfleet.domain.states import Market
from tests.cli.fake_api import JOB, NODE, STORY, FakeApi, problem, served


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment of the person who runs the tests, and no long pauses."""
    for name in ("SKYFLEET_API", "SKYFLEET_TOKEN", "SKYFLEET_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SKYFLEET_DATA", str(tmp_path))
    monkeypatch.setattr(client_module._Tries, "_pause", lambda self: 0.0)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def sky(api: FakeApi) -> Iterator[SkyfleetClient]:
    with served(api) as url, SkyfleetClient(url, "sf_key") as made:
        yield made


# --- where, and as whom -------------------------------------------------------------------------------------


def write_endpoints(folder: Path, api: str) -> None:
    (folder / "endpoints.json").write_text(json.dumps({"api": api, "admin_token": "local-secret"}))


def test_arguments_go_before_the_environment_and_that_before_the_stack_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert resolve().url == "http://127.0.0.1:8080"
    assert resolve().headers == {}
    write_endpoints(tmp_path, "http://127.0.0.1:9999")
    assert (resolve().url, resolve().headers) == ("http://127.0.0.1:9999", {"X-Admin-Token": "local-secret"})
    monkeypatch.setenv("SKYFLEET_API", "http://prod.example:80/")
    monkeypatch.setenv("SKYFLEET_TOKEN", "sf_env")
    assert (resolve().url, resolve().headers) == ("http://prod.example:80", {"Authorization": "Bearer sf_env"})
    assert resolve("http://other:1", "sf_arg").headers == {"Authorization": "Bearer sf_arg"}


def test_the_local_admin_token_is_never_sent_to_another_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_endpoints(tmp_path, "http://127.0.0.1:9999")
    assert resolve("http://elsewhere:8080").headers == {}
    monkeypatch.setenv("SKYFLEET_API", "http://elsewhere:8080")
    assert resolve().headers == {}
    assert resolve("http://127.0.0.1:9999/").headers == {"X-Admin-Token": "local-secret"}


def test_a_damaged_endpoints_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text("{")
    assert resolve().url == "http://127.0.0.1:8080"


def test_secrets_are_not_in_the_repr() -> None:
    assert "sf_secret" not in repr(resolve("http://a:1", "sf_secret"))


# --- calls --------------------------------------------------------------------------------------------------


def test_answers_are_typed(api: FakeApi, sky: SkyfleetClient) -> None:
    assert sky.models()[0].vram_required_gb == 2.4
    assert sky.model_estimate("org/model", sequences=64).sequences == 64
    assert sky.refresh_models().url == sky.model_bucket().url == "s3://weights"
    assert sky.offers(model_name="org/model").offers[0].market is Market.SPOT
    assert sky.providers().providers[0].cloud == "aws"
    assert sky.refresh_providers().status == "refreshing"
    assert sky.nodes().nodes[0].cost_per_hour == Decimal("0.4024")
    assert sky.node(NODE["node_id"]).sandbox
    assert sky.status(JOB, live=True).attempts[0].error is not None
    assert sky.launches(status=["failed"]).next == "c2"
    assert sky.whoami().principal == "admin-token"
    assert sky.create_api_key("ci", "operator").key == "sf_abc_secret"
    assert sky.notifications(kind="launch_failed").notifications[0].deliveries[0].channel == "on-call"
    assert sky.channels().channels[0].kinds == ["node_lost"]
    assert sky.create_channel({"name": "on-call", "url": "slack://a/b/c"}).service == "Slack"
    assert sky.change_channel("on-call", {"kinds": []}).enabled
    assert sky.test_channel("on-call").ok
    assert sky.remove_channel("on-call").status == "removed"
    sky.delete_model("org/model")
    sky.revoke_api_key("abc")
    assert sky.health().ok
    assert {headers["authorization"] for _, _, headers, _ in api.requests} == {"Bearer sf_key"}


def test_a_body_leaves_out_what_was_not_given_and_writes_money_as_text(api: FakeApi, sky: SkyfleetClient) -> None:
    sky.launch({"model_name": "org/model", "region": None, "max_hourly_cost": Decimal("1.20")})
    assert api.requests[-1][3] == {"model_name": "org/model", "max_hourly_cost": "1.20"}


def test_an_unhealthy_api_is_an_answer_not_an_error(api: FakeApi, sky: SkyfleetClient) -> None:
    api.healthy = False
    report = sky.health()
    assert not report.ok
    assert report.components["temporal"].detail == "away"


# --- errors -------------------------------------------------------------------------------------------------


def test_an_error_reads_like_a_person_would_want_it(api: FakeApi, sky: SkyfleetClient) -> None:
    wrong = [{"field": "provider", "message": "unknown provider 'awz'", "accepted": ["aws", "gcp"]}]
    api.answers = [problem(422, "the request is not valid", errors=wrong)]
    with pytest.raises(ApiError) as raised:
        sky.launch({"model_name": "m"})
    assert raised.value.status == 422
    assert str(raised.value).splitlines() == [
        "the request is not valid",
        "  provider: unknown provider 'awz'",
        "  accepted for provider: aws, gcp",
    ]


def test_a_detail_that_already_says_it_is_not_said_twice(api: FakeApi, sky: SkyfleetClient) -> None:
    wrong = [{"field": "gpu", "message": "no GPU 'X'; there are: A, B", "accepted": ["A", "B"]}]
    api.answers = [problem(422, "gpu: no GPU 'X'; there are: A, B", errors=wrong)]
    with pytest.raises(ApiError) as raised:
        sky.offers(gpu="X")
    assert str(raised.value) == "gpu: no GPU 'X'; there are: A, B"


def test_an_error_that_is_not_ours_names_the_address(api: FakeApi, sky: SkyfleetClient) -> None:
    api.answers = [PlainTextResponse("<html>nope", 418)]
    with pytest.raises(ApiError, match=r"/admin/nodes answered 418"):
        sky.nodes()


def test_another_program_on_that_port_is_said_so(api: FakeApi, sky: SkyfleetClient) -> None:
    api.answers = [JSONResponse({"hello": "world"})]
    with pytest.raises(ApiError, match="is it another program"):
        sky.nodes()


# --- retries ------------------------------------------------------------------------------------------------


def test_a_launch_is_asked_for_again_under_the_same_key(api: FakeApi, sky: SkyfleetClient) -> None:
    api.answers = [problem(503, "the database is away"), problem(503, "the database is away")]
    assert sky.launch({"model_name": "m"}).job_id == JOB
    keys = {headers["idempotency-key"] for headers in api.seen("POST", "/admin/instances/launch")}
    assert len(api.requests) == 3
    assert len(keys) == 1


def test_two_launches_have_two_keys_and_a_given_key_is_used(api: FakeApi, sky: SkyfleetClient) -> None:
    sky.launch({"model_name": "m"})
    sky.launch({"model_name": "m"})
    sky.launch({"model_name": "m"}, idempotency_key="mine")
    keys = [headers["idempotency-key"] for headers in api.seen("POST", "/admin/instances/launch")]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_what_is_not_repeatable_is_not_repeated(api: FakeApi, sky: SkyfleetClient) -> None:
    api.answers = [problem(503, "the database is away")]
    with pytest.raises(ApiError) as raised:
        sky.create_api_key("ci", "viewer")
    assert raised.value.status == 503
    assert len(api.requests) == 1


def test_retries_end(api: FakeApi, sky: SkyfleetClient) -> None:
    api.answers = [problem(503, "away") for _ in range(20)]
    with pytest.raises(ApiError):
        sky.nodes()
    assert len(api.requests) == 5


def test_a_lost_reply_is_retried_only_when_harmless() -> None:
    sent: list[str] = []

    def lose(request: httpx.Request) -> httpx.Response:
        sent.append(request.method)
        raise httpx.ReadError("connection reset", request=request)

    with SkyfleetClient("http://api", transport=httpx.MockTransport(lose)) as sky:
        with pytest.raises(ApiUnreachable, match="connection reset"):
            sky.create_api_key("ci", "viewer")
        assert len(sent) == 1
        with pytest.raises(ApiUnreachable):
            sky.nodes()
        assert len(sent) == 6


def test_nobody_there() -> None:
    with pytest.raises(ApiUnreachable, match="does not answer"):
        SkyfleetClient("http://127.0.0.1:1").whoami()
    with pytest.raises(ApiUnreachable):
        SkyfleetClient("ftp://127.0.0.1").whoami()
    with pytest.raises(ApiUnreachable):
        SkyfleetClient("http://127.0.0.1:port")


# --- following a launch -------------------------------------------------------------------------------------


def test_a_launch_is_followed_to_its_end(sky: SkyfleetClient) -> None:
    assert [one.seq for one in sky.events(JOB)] == [1, 2, 3, 4, 5, 6]
    assert [one.seq for one in sky.events(JOB, after=4)] == [5, 6]


def test_a_broken_stream_goes_on_where_it_broke(api: FakeApi, sky: SkyfleetClient) -> None:
    api.drop_after = [2, 0, 1]
    lost: list[str] = []
    assert [one.seq for one in sky.events(JOB, lost=lost.append)] == [1, 2, 3, 4, 5, 6]
    asked = [headers.get("last-event-id") for headers in api.seen("GET", f"/admin/instances/launch/{JOB}/events")]
    assert asked == [None, "2", "2", "3"]
    assert len(lost) == 3


def test_a_stream_that_closes_early_is_asked_again(api: FakeApi, sky: SkyfleetClient) -> None:
    api.close_cleanly_after = 3
    assert [one.seq for one in sky.events(JOB)] == [1, 2, 3, 4, 5, 6]


def test_a_launch_that_had_ended_before_gives_no_events_and_returns(sky: SkyfleetClient) -> None:
    assert list(sky.events(JOB, after=6)) == []


def test_only_what_there_is_by_now(api: FakeApi, sky: SkyfleetClient) -> None:
    api.end = "PROVISIONING"
    assert [one.seq for one in sky.events(JOB, live=False)] == [1, 2]


def test_an_unknown_launch_is_not_waited_for(sky: SkyfleetClient) -> None:
    with pytest.raises(ApiError) as raised:
        next(sky.events("launch-nope"))
    assert raised.value.status == 404


def test_patience_has_an_end() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with SkyfleetClient("http://api", transport=httpx.MockTransport(refuse)) as sky, pytest.raises(ApiUnreachable):
        next(sky.events(JOB, patience_s=0.0))


def test_a_field_in_several_lines_and_comments() -> None:
    follow = client_module._Follow("http://a", JOB, 0, True, 1.0, lambda why: None)
    text = json.dumps(STORY["READY"][0], indent=1)
    lines = [": comment", "id:1", "event: stage", *(f"data: {line}" for line in text.splitlines()), "retry: 5", ""]
    events = [found for line in lines if (found := follow.line(line)) is not None]
    assert [found.seq for found in events] == [1]
    assert follow.line("") is None


async def test_the_asyncio_client_is_the_same(api: FakeApi) -> None:
    api.drop_after = [2]
    with served(api) as url:
        async with AsyncSkyfleetClient(url, "sf_key") as sky:
            assert (await sky.launch({"model_name": "m"})).job_id == JOB
            assert [one.seq async for one in sky.events(JOB)] == [1, 2, 3, 4, 5, 6]
            api.answers = [problem(403, "not allowed")]
            with pytest.raises(ApiError, match="not allowed"):
                await sky.terminate("x")


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(SkyfleetClient) - {"close"} == public(AsyncSkyfleetClient) - {"aclose"}
