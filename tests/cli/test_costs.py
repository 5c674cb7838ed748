"""`costs` and `budgets`, against an API on a real socket: what they print and what they send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.schemas import BudgetRequest
from skyfleet.cli.main import app
from tests.cli.fake_api import BREAKDOWN, BUDGET, COSTS, INTERVAL, FakeApi, served


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def sky(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("SKYFLEET_API", "SKYFLEET_TOKEN", "SKYFLEET_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with served(api) as url:

        def run(*arguments: str) -> Result:
            return CliRunner().invoke(app, ["--api", url, "--token", "sf_key", *arguments])

        yield run


def _same(shown: dict[str, Any], answered: dict[str, Any]) -> bool:
    return {name: shown[name] for name in answered} == answered


def test_the_month_is_shown_in_short(sky: Any) -> None:
    shown = sky("costs").stdout
    for part in ("November 2026", "sandbox", "$120.50", "$180.25", "$0.4024/h", "$60.00 (60% less", "$1.25"):
        assert part in shown
    assert _same(json.loads(sky("costs", "--json").stdout), COSTS)


def test_costs_are_told_apart_over_a_period(api: FakeApi, sky: Any) -> None:
    period = ("--from", "2026-11-01T00:00+00:00", "--to", "2026-11-22T06:00+00:00", "--tenant", "research")
    shown = sky("costs", "--by", "instance_type", *period).stdout
    for part in ("INSTANCE TYPE", "g5.xlarge", "(none)", "total", "$7.50", "12.35", "more than are shown"):
        assert part in shown
    assert api.questions[-1] == (
        "/admin/costs/breakdown",
        {
            "by": "instance_type",
            "from": "2026-11-01T00:00:00+00:00",
            "to": "2026-11-22T06:00:00+00:00",
            "tenant": "research",
        },
    )
    document = json.loads(sky("costs", "--by", "day", "--json").stdout)
    assert document["by"] == BREAKDOWN["by"]
    sky("costs", "--model", "m")
    assert api.questions[-1] == ("/admin/costs/breakdown", {"by": "provider", "model_name": "m"})


def test_each_machine_is_shown_with_what_came_of_it(api: FakeApi, sky: Any) -> None:
    shown = sky("costs", "--machines", "--provider", "aws").stdout
    for part in (INTERVAL["machine"], "failed attempt", "still billed", "spot", "--cursor c2"):
        assert part in shown
    assert api.questions[-1] == ("/admin/costs/intervals", {"provider": "aws", "limit": "50"})
    [line] = json.loads(sky("costs", "--machines", "--json").stdout)["intervals"]
    assert line["machine"] == INTERVAL["machine"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("costs", "--by", "colour"),
        ("costs", "--from", "yesterday"),
        ("costs", "--machines", "--by", "day"),
        ("budgets", "set", "team", "-5"),
        ("budgets", "set", "team", "lots"),
        ("budgets", "set", "team", "5", "--alert-at", "most"),
        ("budgets", "set", "team", "5", "--hard-stop", "explode"),
        ("budgets", "set", "team"),
    ],
)
def test_what_is_typed_wrong_is_usage_and_asks_nothing(api: FakeApi, sky: Any, arguments: tuple[str, ...]) -> None:
    assert sky(*arguments).exit_code == 2
    assert api.requests == []


def test_budgets_are_listed_set_and_deleted(api: FakeApi, sky: Any) -> None:
    for command in (("budgets",), ("budgets", "list")):
        shown = sky(*command).stdout
        for part in ("team", "tenant research", "$800.00", "$820.00", "102%", "50% 80% 100%", "drain, in force"):
            assert part in shown
        assert _same(json.loads(sky(*command, "--json").stdout)["budgets"][0], BUDGET)
    options = "--scope tenant --value research --alert-at 50% --alert-at 0.9 --hard-stop drain"
    assert sky("budgets", "set", "team", "$800", *options.split()).exit_code == 0
    method, path, _, body = api.requests[-1]
    assert (method, path) == ("PUT", "/admin/budgets/team")
    assert body == {
        "scope": "tenant",
        "value": "research",
        "amount": "800",
        "alert_fractions": ["0.5", "0.9"],
        "hard_stop": "drain",
    }
    assert BudgetRequest.model_validate(body).amount == 800
    assert json.loads(sky("budgets", "delete", "team", "--json").stdout) == {"deleted": "team"}
    assert api.requests[-1][:2] == ("DELETE", "/admin/budgets/team")
