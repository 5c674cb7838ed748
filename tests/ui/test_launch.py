"""The page of one launch."""

from __future__ import annotations

import time

import pytest
from streamlit.testing.v1 import AppTest

from skyfleet.domain.states import AttemptState, LaunchStage
from tests.ui.conftest import Open
from tests.ui.fake_api import LLAMA, NO_SPOT, VIEWER, FakeApi, attempt, event, launch
from tests.ui.reading import labels, press, text

JOB = "launch-00000001"
GAVE_UP = attempt(1, "us-east-1", AttemptState.CLOSED, NO_SPOT)


@pytest.fixture
def falling_back(api: FakeApi) -> FakeApi:
    """A launch whose second attempt is under way."""
    reached = {LaunchStage.VALIDATING, LaunchStage.REQUESTING, LaunchStage.PROVISIONING}
    second = attempt(2, "us-west-2", AttemptState.CREATED)
    api.launches = [launch(JOB, LaunchStage.PROVISIONING, reached=reached, attempts=[GAVE_UP, second])]
    api.events[JOB] = [
        event(1, LaunchStage.QUEUED, "accepted"),
        event(2, LaunchStage.VALIDATING, "validating configuration"),
        event(3, LaunchStage.REQUESTING, "requesting", number=1),
        event(4, LaunchStage.TEARING_DOWN, "attempt 1 given up", kind="attempt", number=1),
        event(7, LaunchStage.REQUESTING, "requesting again", number=2),
        event(9, LaunchStage.PROVISIONING, "accepted by the cloud", number=2),
    ]
    return api


def _stages(app: AppTest) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in app.table[0].value.to_numpy().tolist()]


def _caught_up(app: AppTest, events: int) -> AppTest:
    """The page as it is once that many events have come in, which it draws as they come."""
    deadline = time.monotonic() + 20
    while len(app.table) < 2 or len(app.table[1].value) < events:
        assert time.monotonic() < deadline, text(app)
        app.run()
    return app


def test_stages_are_shown_as_reached_by_the_current_attempt(open_room: Open, falling_back: FakeApi) -> None:
    app = _caught_up(open_room("launch", job=JOB), 6)
    stages = _stages(app)
    assert stages[0] == [":green[✓] validating configuration", "12:00:02", "2.0 s"]
    assert stages[1] == [":green[✓] requesting instance", "12:00:07", "7.0 s"]
    assert stages[2] == [":blue[→] **provisioning instance**", "12:00:09", "9.0 s"]
    assert [stage[1:] for stage in stages[3:]] == [["", ""]] * 4, "no time for what was not reached"
    assert all(stage[0].startswith(":gray[○]") for stage in stages[3:])
    assert app.progress[0].value == 45


def test_no_time_is_shown_for_a_stage_that_the_status_has_not_reached(open_room: Open, falling_back: FakeApi) -> None:
    falling_back.events[JOB].append(event(11, LaunchStage.INSTALLING, "early", number=2))
    assert _stages(_caught_up(open_room("launch", job=JOB), 7))[3][1:] == ["", ""]


def test_attempts_carry_place_price_outcome_and_the_error_in_words_and_raw(
    open_room: Open, falling_back: FakeApi
) -> None:
    app = open_room("launch", job=JOB)
    page = text(app)
    for word in ("1. aws · us-east-1a", "✗ no capacity", "gone, the cloud confirmed it", NO_SPOT.message, "$0.4024/h"):
        assert word in page
    for word in ("try another region · use on-demand", "2. aws · us-west-2a", "machine is coming up", "3.0 s"):
        assert word in page
    assert [item.label for item in app.expander] == ["What aws said, word for word"]
    assert app.expander[0].code[0].value == NO_SPOT.raw


def test_the_timeline_has_every_event_newest_first(open_room: Open, falling_back: FakeApi) -> None:
    rows = _caught_up(open_room("launch", job=JOB), 6).table[1].value.to_numpy().tolist()
    assert [row[0] for row in rows] == ["12:00:09", "12:00:07", "12:00:04", "12:00:03", "12:00:02", "12:00:01"]
    assert rows[-1][2].endswith("accepted")


def test_a_reload_shows_the_same(open_room: Open, falling_back: FakeApi) -> None:
    first, again = (_stages(_caught_up(open_room("launch", job=JOB), 6)) for _ in range(2))
    assert first == again


def test_it_goes_on_as_events_come_in(open_room: Open, falling_back: FakeApi) -> None:
    app = open_room("launch", job=JOB)
    done = {LaunchStage(mark) for mark in LaunchStage if not LaunchStage(mark).terminal} - {LaunchStage.TEARING_DOWN}
    winner = attempt(2, "us-west-2", AttemptState.SUCCEEDED)
    falling_back.launches[0] = launch(
        JOB, LaunchStage.READY, reached=done, attempts=[GAVE_UP, winner], endpoint_url="http://127.0.0.1:9"
    )
    falling_back.events[JOB].append(event(30, LaunchStage.READY, "ready", kind="end"))
    page = text(_caught_up(app, 7).run())
    assert "✓ ready" in page
    assert "http://127.0.0.1:9/v1/chat/completions" in page
    assert "$0.0123" in page
    assert "Cancel this launch" not in labels(app)


def test_cancel_asks_first_and_then_says_that_it_waits_for_the_cloud(open_room: Open, falling_back: FakeApi) -> None:
    app = open_room("launch", job=JOB)
    assert falling_back.cancelled == []
    press(app, "Cancel this launch")
    assert falling_back.cancelled == [JOB]
    assert "→ cancelling" in text(app)
    assert "Cancel this launch" not in labels(app)
    assert "✗ cancelled" not in text(app), "not before the cloud confirmed it"


def test_a_viewer_cannot_cancel(open_room: Open, falling_back: FakeApi) -> None:
    assert labels(open_room("launch", token=VIEWER, job=JOB)) == ["Sign out"]


def test_a_failure_says_why_what_to_try_and_the_raw_words(open_room: Open, api: FakeApi) -> None:
    reached = {LaunchStage.VALIDATING, LaunchStage.REQUESTING}
    api.launches = [launch(JOB, LaunchStage.FAILED, reached=reached, attempts=[GAVE_UP], error=NO_SPOT)]
    api.events[JOB] = [event(1, LaunchStage.QUEUED, "accepted"), event(2, LaunchStage.FAILED, "failed", kind="end")]
    app = open_room("launch", job=JOB)
    page = text(app)
    assert f"**Failed.** {NO_SPOT.message}" in page
    assert "1. try another region" in page
    assert _stages(app)[1][0].startswith(":red[✗]")
    press(app, "Launch again…")
    assert app.title[0].value == "New launch"
    assert app.selectbox(key="provider").value == "aws"
    assert app.radio(key="market").value == "Spot"


def test_an_unknown_launch_is_said_and_another_can_be_opened(open_room: Open, api: FakeApi) -> None:
    app = open_room("launch", job="launch-ffffffff")
    assert "There is no such launch" in text(app)
    api.launches = [launch(JOB, LaunchStage.CANCELLED, reached=set())]
    api.events[JOB] = [event(1, LaunchStage.CANCELLED, "cancelled", kind="end")]
    app.text_input[0].input(f" {JOB} ")
    press(app, "Open")
    assert "The cloud confirmed that nothing of this launch is left" in text(app)
    assert "None: nothing was asked of any cloud." in text(app)


def test_names_of_others_are_shown_as_they_are(open_room: Open, api: FakeApi) -> None:
    nasty = 'a_b*c :red[x] $1$ <img src="x"> `d`'
    error = NO_SPOT.model_copy(update={"message": nasty})
    api.launches = [launch(JOB, LaunchStage.FAILED, reached=set(), error=error)]
    api.events[JOB] = [event(1, LaunchStage.FAILED, nasty, kind="end")]
    app = open_room("launch", job=JOB)
    assert nasty in text(app)
    assert nasty not in "".join(item.value for item in app.error), "escaped"


def test_the_way_to_the_workflow_is_offered(open_room: Open, falling_back: FakeApi) -> None:
    links = open_room("launch", job=JOB).link_button
    assert [link.url for link in links] == [f"http://temporal.invalid/launch/{JOB}"]


def test_a_lost_api_keeps_what_was_known(open_room: Open, falling_back: FakeApi) -> None:
    app = _caught_up(open_room("launch", job=JOB), 6)
    falling_back.away = True
    app.session_state[f"status {JOB}"] = (0, 0.0, falling_back.launches[0])
    app.run()
    assert "The API does not answer" in text(app)
    assert LLAMA in text(app)
    assert _stages(app)[2][1] == "12:00:09"
