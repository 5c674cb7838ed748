"""Who gets in, and who is sent back."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

from tests.ui.conftest import Open
from tests.ui.fake_api import ADMIN, VIEWER, FakeApi
from tests.ui.reading import labels, press, text


def _give(app: AppTest, key: str) -> AppTest:
    app.text_input[0].input(key)
    return press(app, "Sign in")


def test_asks_for_a_key_and_remembers_it_in_the_session(open_room: Open) -> None:
    app = open_room(token=None)
    assert [item.label for item in app.text_input] == ["API key or admin token"]
    assert "Nothing has been launched yet" not in text(app)
    _give(app, f"  {VIEWER} ")
    assert "Nothing has been launched yet" in text(app)
    assert "vera · viewer" in text(app)
    assert "Nothing has been launched yet" in text(app.run())


def test_a_wrong_key_is_refused_in_words(open_room: Open) -> None:
    app = _give(open_room(token=None), "sf_wrong_key")
    assert "the credentials are not known" in text(app)
    assert labels(app) == ["Sign in"]


def test_what_cannot_be_a_key_is_not_sent(open_room: Open, api: FakeApi) -> None:
    app = open_room(token=None)
    for key, said in (("", "Give an API key"), ("ключ", "That is no API key"), ("two words", "That is no API key")):
        _give(app, key)
        assert said in text(app)
    assert api.asked == []


def test_the_embedded_stack_signs_its_user_in(open_room: Open) -> None:
    assert "admin-token · admin" in text(open_room())


def test_a_refused_preset_token_leads_to_the_sign_in_with_the_reason(open_room: Open) -> None:
    app = open_room(token="no-longer-right")
    assert "the credentials are not known" in text(app)
    assert labels(app) == ["Sign in"]
    assert "Nothing has been launched yet" in text(_give(app, ADMIN))


def test_a_key_that_is_revoked_meanwhile_ends_the_session(open_room: Open, api: FakeApi) -> None:
    app = open_room()
    del api.keys[ADMIN]
    app.run()
    assert "Signed out: the credentials are not known" in text(app)
    assert labels(app) == ["Sign in"]


def test_signing_out_forgets_the_key(open_room: Open) -> None:
    app = press(open_room(), "Sign out")
    assert labels(app) == ["Sign in"]
    assert labels(app.run()) == ["Sign in"]


def test_the_api_being_away_at_sign_in_is_said(open_room: Open, api: FakeApi) -> None:
    app = open_room(token=None)
    api.away = True
    _give(app, ADMIN)
    assert "the database does not answer" in text(app)
    api.away = False
    assert "Nothing has been launched yet" in text(_give(app, ADMIN))
