"""A launch in three steps."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from api.schemas import LaunchRequest
from skyfleet.cli.main import app as cli
from skyfleet.domain.states import LaunchStage
from skyfleet.domain.views import FieldProblem, Problem
from tests.ui.conftest import Open
from tests.ui.fake_api import ADMIN, LLAMA, VIEWER, FakeApi, launch
from tests.ui.reading import labels, press, text

CARD = "Choose Llama-3.1-8B-Instruct"


def _to_configuration(open_room: Open) -> AppTest:
    return press(open_room("new"), CARD)


def _to_review(app: AppTest) -> AppTest:
    return press(press(app, "Choose an instance"), "✓ Choose any type")


def test_models_are_cards_that_can_be_searched(open_room: Open) -> None:
    app = open_room("new")
    for word in (LLAMA, "llama", "8B", "needs **20 GB** of GPU memory", "needs **1.2 GB** of GPU memory"):
        assert word in text(app)
    app.text_input(key="model_search").input("qwen 0.5").run()
    assert LLAMA not in text(app)
    assert "Choose Qwen2.5-0.5B" in labels(app)
    app.text_input(key="model_search").input("gpt").run()
    assert "No model matches" in text(app)


def test_a_catalog_without_models_says_how_to_add_one(open_room: Open, api: FakeApi) -> None:
    api.models = []
    assert "skyfleet models add" in text(open_room("new"))


def test_three_steps_become_one_launch_and_its_page(open_room: Open, api: FakeApi) -> None:
    app = _to_configuration(open_room)
    assert "From $1.006/h in aws us-east-1." in str(app.radio(key="market").proto.captions[0]).replace("\\", "")
    assert "62 % less" in str(app.radio(key="market").proto.captions[1])
    app.radio(key="market").set_value("Spot").run()
    app.selectbox(key="provider").select("aws").run()
    app.selectbox(key="region-aws").select("us-east-1").run()
    app.toggle(key="other_clouds").set_value(True).run()
    app.number_input(key="max_hourly_cost").set_value(1.5).run()
    app.text_input(key="engine_args").input("--max-model-len 8192 --enforce-eager").run()
    press(app, "Choose an instance")
    page = text(app)
    assert "$0.4024/h" in page
    assert "needs 20 GB of GPU memory, g4dn.xlarge has 16 GB" in page
    press(app, "Choose g5.xlarge")
    page = text(app)
    assert "Never more than **$1.50/h**" in page
    assert "$9.6576 a day" in page
    press(app, "Launch")
    assert [body for _, body in api.posts] == [
        {
            "model_name": LLAMA,
            "provider": "aws",
            "region": "us-east-1",
            "instance_type": "g5.xlarge",
            "use_spot": True,
            "fallback": {"regions": "any", "clouds": "any", "on_demand": True},
            "max_hourly_cost": "1.5",
            "engine_args": ["--max-model-len=8192", "--enforce-eager"],
        }
    ]
    assert app.title[0].value == LLAMA
    assert app.query_params["job"] == "launch-00000001"


def test_what_was_chosen_is_still_there_on_the_way_back(open_room: Open) -> None:
    app = _to_configuration(open_room)
    app.radio(key="market").set_value("Spot").run()
    app.number_input(key="provision_minutes").set_value(3).run()
    _to_review(app)
    press(app, "✓ 2 · Configuration")
    assert app.radio(key="market").value == "Spot"
    assert app.number_input(key="provision_minutes").value == 3


def test_a_double_click_launches_once(open_room: Open, api: FakeApi) -> None:
    app = _to_review(_to_configuration(open_room))
    api.lose_replies = 1
    press(app, "Launch")
    assert "The API did not answer" in text(app)
    press(app, "Launch")
    assert len(api.posts) == 2
    assert len({key for key, _ in api.posts}) == 1
    assert list(api.accepted.values()) == ["launch-00000001"]
    assert app.query_params["job"] == "launch-00000001"


def test_another_request_has_another_key_and_the_form_begins_anew(open_room: Open, api: FakeApi) -> None:
    app = _to_review(_to_configuration(open_room))
    press(app, "Launch")
    app.query_params.pop("job")
    app.switch_page("rooms/new.py").run()
    assert CARD in labels(app), "the form begins anew"
    press(_to_review(press(app, CARD)), "Launch")
    assert len({key for key, _ in api.posts}) == 2


@pytest.mark.parametrize(
    ("field", "step"),
    [
        ("engine_args", "configuration"),
        ("region", "configuration"),
        ("max_hourly_cost", "configuration"),
        ("deadlines.provision_seconds", "configuration"),
        ("instance_type", "instance"),
        ("model_name", "model"),
    ],
)
def test_a_refused_field_is_said_where_it_is_asked_for(open_room: Open, api: FakeApi, field: str, step: str) -> None:
    app = _to_review(_to_configuration(open_room))
    wrong = FieldProblem(field=field, message="will not do", accepted=["this", "that"])
    api.refuse_launch = Problem(title="Unprocessable", status=422, detail="no", errors=[wrong])
    press(app, "Launch")
    assert [item.value for item in app.error] == ["will not do  \nAccepted: this, that"]
    assert app.session_state["step"] == step


def test_the_refusal_goes_when_the_field_is_changed(open_room: Open, api: FakeApi) -> None:
    app = _to_review(_to_configuration(open_room))
    wrong = FieldProblem(field="max_hourly_cost", message="nothing within")
    api.refuse_launch = Problem(title="Unprocessable", status=422, detail="no", errors=[wrong])
    press(app, "Launch")
    assert len(app.error) == 1
    app.number_input(key="max_hourly_cost").set_value(9).run()
    assert len(app.error) == 0


def test_a_refusal_of_no_field_is_said_too(open_room: Open, api: FakeApi) -> None:
    app = _to_review(_to_configuration(open_room))
    api.refuse_launch = Problem(title="Too Many Requests", status=429, detail="too many launches: try again in 3 s")
    press(app, "Launch")
    assert "**Not launched.** too many launches: try again in 3 s" in text(app)
    assert "Launch" in labels(app)


def test_an_open_quote_is_caught_before_anything_is_sent(open_room: Open) -> None:
    app = _to_configuration(open_room)
    app.text_input(key="engine_args").input("--served-model-name 'x").run()
    assert "A quote is opened and not closed." in text(app)
    assert "Choose an instance" not in labels(app)


def test_nothing_that_fits_is_said_with_reasons(open_room: Open) -> None:
    app = _to_configuration(open_room)
    app.number_input(key="max_hourly_cost").set_value(0.1).run()
    press(app, "Choose an instance")
    assert "Nothing here fits." in text(app)
    assert "costs $1.006/h, over your limit of $0.1/h" in text(app)


def test_no_cloud_at_all_is_said(open_room: Open, api: FakeApi) -> None:
    api.offers = []
    assert "No cloud sells anything just now." in text(_to_configuration(open_room))


def test_a_viewer_is_told_that_it_may_not(open_room: Open, api: FakeApi) -> None:
    app = open_room("new", token=VIEWER)
    assert "may look but not launch" in text(app)
    assert labels(app) == ["Sign out"]


@pytest.mark.parametrize("spot", [False, True])
def test_the_command_line_and_the_curl_ask_for_the_same(
    open_room: Open, api: FakeApi, spot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = _to_configuration(open_room)
    app.radio(key="market").set_value("Spot" if spot else "On-demand").run()
    app.selectbox(key="provider").select("aws").run()
    app.selectbox(key="region-aws").select("us-west-2").run()
    app.number_input(key="max_hourly_cost").set_value(2.25).run()
    app.number_input(key="provision_minutes").set_value(4).run()
    app.selectbox(key="engine").select("vllm").run()
    app.text_input(key="engine_args").input("""--dtype bfloat16 --served-model-name 'a b' --enforce-eager""").run()
    _to_review(app)
    command, curl = (item.value for item in app.code)
    press(app, "Launch")
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "skyfleet"
    monkeypatch.delenv("SKYFLEET_DASHBOARD_TOKEN")
    done = CliRunner().invoke(cli, ["--api", api.url, "--token", ADMIN, *words[1:], "--detach"])
    assert done.exit_code == 0, done.output
    (_, from_form), (_, from_cli) = api.posts
    assert _meaning(from_cli) == _meaning(from_form)
    parts = shlex.split(curl.replace("\\\n", " "))
    assert parts[3] == f"{api.url}/admin/instances/launch"
    assert json.loads(parts[parts.index("-d") + 1]) == from_form


def _meaning(body: dict[str, Any]) -> LaunchRequest:
    """The request as the real API reads it."""
    return LaunchRequest.model_validate(body)


def test_launching_again_starts_from_the_same_choices(open_room: Open, api: FakeApi) -> None:
    old = launch("launch-0000000a", LaunchStage.CANCELLED, reached=set())
    old.requested = {
        **old.requested,
        "fallback": {"regions": "any", "clouds": [], "on_demand": True},
        "max_hourly_cost": "1.25",
        "deadlines": {"provision_seconds": 120.0, "registration_seconds": 600.0},
        "engine_args": ["--served-model-name=a b"],
    }
    api.launches = [old]
    app = press(open_room("launch", job=old.job_id), "Launch again…")
    assert app.selectbox(key="region-aws").value == "us-east-1"
    assert app.toggle(key="then_on_demand").value is True
    assert app.number_input(key="max_hourly_cost").value == 1.25
    assert app.number_input(key="provision_minutes").value == 2
    assert app.text_input(key="engine_args").value == "'--served-model-name=a b'"
