"""The list of nodes."""

from __future__ import annotations

from skyfleet.domain.states import NodeStatus
from tests.ui.conftest import Open
from tests.ui.fake_api import VIEWER, FakeApi, node
from tests.ui.reading import labels, press, text


def test_no_node_says_where_they_come_from(open_room: Open) -> None:
    assert "A node appears here when a launch reaches *ready*." in text(open_room("nodes"))


def test_a_node_is_terminated_after_a_question(open_room: Open, api: FakeApi) -> None:
    api.nodes = [node("a-1"), node("b-1", NodeStatus.DRAINING)]
    app = open_room("nodes")
    for word in ("✓ ready", "→ draining", "health 100%", "$0.4024/h spot", "$0.0123 so far", "◆ sandbox"):
        assert word in text(app)
    assert "This cannot be undone." in text(app)
    assert api.terminated == []
    press(app, "Terminate this node")
    assert api.terminated == ["sf-a-1"]
    assert "It is gone when its cloud says so." in text(app)


def test_a_viewer_cannot_terminate(open_room: Open, api: FakeApi) -> None:
    api.nodes = [node("a-1")]
    app = open_room("nodes", token=VIEWER)
    assert "sf-a-1" in text(app)
    assert labels(app) == ["Sign out"]


def test_terminated_nodes_are_shown_when_asked_for(open_room: Open, api: FakeApi) -> None:
    api.nodes = [node("a-1", NodeStatus.TERMINATED)]
    app = open_room("nodes")
    assert "sf-a-1" not in text(app)
    app.toggle(key="terminated").set_value(True).run()
    assert "■ terminated" in text(app)
    assert "Terminate this node" not in labels(app)


def test_a_refusal_reaches_the_person(open_room: Open, api: FakeApi) -> None:
    api.nodes = [node("a-1")]
    app = open_room("nodes")
    api.away = True
    press(app, "Terminate this node")
    assert "**sf-a-1** was not terminated: the database does not answer" in text(app)
    assert api.terminated == []
