"""Who looks: the API key of this browser session, what it may do, and the client that carries it.

The key lives in Streamlit's session state, that is, in the dashboard process for as long as the tab is open. It is
never written to a cookie, an address or a log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, NoReturn

import streamlit as st

from skyfleet.client import DEFAULT_API, ApiError, ApiUnreachable, SkyfleetClient
from skyfleet.domain.states import Role
from skyfleet.domain.views import Identity

#: The rooms, as `st.Page`, `st.page_link` and `st.switch_page` name them: paths beside `app.py`.
LAUNCHES: Final = "rooms/launches.py"
NEW: Final = "rooms/new.py"
LAUNCH: Final = "rooms/launch.py"
NODES: Final = "rooms/nodes.py"

_WHO: Final = "who"
_REASON: Final = "signed_out_because"
_NO_PRESET: Final = "preset_token_refused"


@dataclass(frozen=True)
class Who:
    """A person who signed in."""

    token: str = field(repr=False)
    identity: Identity


def api_url() -> str:
    """Base URL of the API."""
    return (os.environ.get("SKYFLEET_API") or DEFAULT_API).rstrip("/")


def preset_token() -> str | None:
    """The token that the embedded stack signs its own user in with; None once it was refused in this session."""
    return None if st.session_state.get(_NO_PRESET) else os.environ.get("SKYFLEET_DASHBOARD_TOKEN") or None


def who() -> Who | None:
    """Whoever is signed in."""
    return st.session_state.get(_WHO)


def sign_in(token: str) -> Who:
    """Check the key or admin token with the API and remember it. Raises `ApiError` and `ApiUnreachable`."""
    with SkyfleetClient(api_url(), token) as client:
        found = Who(token, client.whoami())
    st.session_state[_WHO] = found
    st.session_state.pop(_REASON, None)
    return found


def sign_out(reason: str | None = None, *, refused: bool = False) -> None:
    """Forget the key and everything that was read with it; `refused` when the API would not have it any more."""
    preset_refused = refused or st.session_state.get(_NO_PRESET) or reason is None
    st.session_state.clear()
    client_for.clear()
    st.session_state[_NO_PRESET] = preset_refused
    if reason is not None:
        st.session_state[_REASON] = reason


def signed_out_because() -> str | None:
    """Why the session ended, when it did not end by the person's own wish."""
    return st.session_state.get(_REASON)


def refused(error: ApiError) -> NoReturn:
    """End the session because the API no longer accepts its key, and show the sign-in with the reason."""
    sign_out(error.problem.detail or error.problem.title, refused=True)
    st.rerun()


def client() -> SkyfleetClient:
    """The client of whoever is signed in; its connections are kept between runs of the script."""
    found = who()
    assert found is not None
    return client_for(api_url(), found.token)


def api_answers() -> bool:
    """Whether the API answers again; before anybody has signed in, the next try to sign in tells."""
    if who() is None:
        return True
    try:
        client().health()
    except (ApiError, ApiUnreachable):
        return False
    return True


def may(needed: Role) -> bool:
    """Whether whoever is signed in may do what `needed` asks for."""
    found = who()
    return found is not None and found.identity.role.includes(needed)


def _close(client: SkyfleetClient) -> None:
    client.close()


@st.cache_resource(scope="session", on_release=_close, show_spinner=False)
def client_for(url: str, token: str) -> SkyfleetClient:
    """One client for each session and key, closed when the session ends."""
    return SkyfleetClient(url, token)
