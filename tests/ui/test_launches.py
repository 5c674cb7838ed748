"""The list of launches."""

from __future__ import annotations

from datetime import timedelta

from skyfleet.domain.states import AttemptState, LaunchStage
from tests.ui.conftest import Open
from tests.ui.fake_api import LLAMA, NO_SPOT, START, VIEWER, FakeApi, attempt, launch
from tests.ui.reading import labels, press, text


def test_an_empty_list_says_what_to_do_first(open_room: Open) -> None:
    app = open_room()
    assert "Nothing has been launched yet" in text(app)
    assert "Launch the first one" in labels(app)
    press(app, "Launch the first one")
    assert app.title[0].value == "New launch"


def test_a_viewer_is_not_offered_to_launch(open_room: Open) -> None:
    app = open_room(token=VIEWER)
    assert labels(app) == ["Sign out"]
    assert "may look but not launch" in text(app)


def test_rows_say_all_that_matters_in_words(open_room: Open, api: FakeApi) -> None:
    reached = {LaunchStage.VALIDATING, LaunchStage.REQUESTING, LaunchStage.PROVISIONING}
    api.launches = [
        launch(
            "launch-00000002",
            LaunchStage.PROVISIONING,
            reached=reached,
            attempts=[
                attempt(1, "us-east-1", AttemptState.CLOSED, NO_SPOT),
                attempt(2, "us-west-2", AttemptState.OPEN),
            ],
        ),
        launch("launch-00000001", LaunchStage.FAILED, reached=reached, error_message="Nothing left: $5_000*"),
    ]
    app = open_room()
    page = text(app)
    for word in (
        "Llama-3.1-8B-Instruct",
        "→ in progress",
        "45 % · provisioning instance",
        "aws · us-west-2a",
        "g5.xlarge",
        "$0.4024/h",
    ):
        assert word in page
    for word in ("spot", "2 attempts", "✗ failed", "Nothing left: $5_000*", "0 attempts · took 30 s", "◆ sandbox"):
        assert word in page


def test_a_row_opens_the_launch_by_its_address(open_room: Open, api: FakeApi) -> None:
    api.launches = [launch("launch-00000001", LaunchStage.QUEUED, reached=set())]
    link = open_room().page_link[0].proto
    assert link.page == "launch"
    assert link.query_string == "job=launch-00000001"


def test_filters_are_asked_of_the_api_and_kept_in_the_address(open_room: Open, api: FakeApi) -> None:
    api.launches = [
        launch("launch-00000002", LaunchStage.FAILED, reached=set(), model_name="Qwen/Qwen2.5-0.5B"),
        launch("launch-00000001", LaunchStage.READY, reached=set()),
    ]
    app = open_room()
    app.pills(key="status").select("failed").run()
    assert "launch-00000002" in text(app)
    assert "launch-00000001" not in text(app)
    app.selectbox(key="model").select(LLAMA).run()
    assert "No launch is like that" in text(app)
    assert "launch-00000001" in text(open_room(model=LLAMA))


def test_pages_are_turned_there_and_back(open_room: Open, api: FakeApi) -> None:
    api.launches = [
        launch(f"launch-{n:08x}", LaunchStage.READY, reached=set(), created_at=START - timedelta(minutes=n))
        for n in range(45)
    ]
    app = open_room()
    assert "Older" in labels(app)
    assert "Newer" not in labels(app)
    press(app, "Older")
    assert f"launch-{20:08x}" in text(app)
    assert "Page 2" in text(app)
    press(app, "Older")
    assert "Older" not in labels(app)
    assert f"launch-{44:08x}" in text(app)
    press(app, "Newer")
    press(app, "Newer")
    assert f"launch-{0:08x}" in text(app)
    press(app, "Older")
    app.pills(key="status").select("completed").run()
    assert f"launch-{0:08x}" in text(app), "a filter starts at the first page"


def test_a_lost_api_is_said_and_what_was_known_stays(open_room: Open, api: FakeApi) -> None:
    api.launches = [launch("launch-00000001", LaunchStage.QUEUED, reached=set())]
    app = open_room()
    api.away = True
    app.run()
    assert "The API does not answer" in text(app)
    assert "launch-00000001" in text(app)
    api.away = False
    app.run()
    assert "The API does not answer" not in text(app)
    assert "launch-00000001" in text(app)


def test_an_api_that_was_never_there_is_said(open_room: Open, api: FakeApi) -> None:
    api.away = True
    app = open_room()
    assert "The API does not answer" in text(app)
    api.away = False
    assert "Nothing has been launched yet" in text(app.run())
