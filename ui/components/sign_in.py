"""The sign-in, shown in place of whatever page was asked for."""

from __future__ import annotations

import streamlit as st

from skyfleet.client import ApiError, ApiUnreachable
from ui import format as f
from ui import session


def preset() -> str | None:
    """Sign in with the token that the stack gave; what is wrong when that does not work."""
    token = session.preset_token()
    if token is None or session.who() is not None:
        return None
    try:
        session.sign_in(token)
    except ApiError as error:
        if error.status == 401:
            session.sign_out(f"the token that this dashboard was started with: {_words(error)}", refused=True)
            return None
        return _words(error)
    except ApiUnreachable as error:
        return str(error)
    return None


def form() -> None:
    """Ask for a key until the API knows it."""
    _, middle, _ = st.columns([1, 2, 1])
    with middle:
        st.title("Skyfleet", anchor=False)
        reason = session.signed_out_because()
        if reason:
            st.warning(f"Signed out: {f.plain(reason)}", icon=":material/lock:")
        with st.form("sign-in"):
            token = st.text_input(
                "API key or admin token",
                type="password",
                autocomplete="current-password",
                help="Kept in this browser tab's session only. Keys are made with `skyfleet api-keys`.",
            )
            asked = st.form_submit_button("Sign in", type="primary", width="stretch")
        if asked:
            _try((token or "").strip())
        st.caption(f"API: {f.plain(session.api_url())}")


def _try(token: str) -> None:
    if not token:
        st.error("Give an API key or the admin token.", icon=":material/error:")
        return
    if not (token.isascii() and token.isprintable()) or " " in token:
        st.error("That is no API key: keys are letters, digits, dashes and underscores.", icon=":material/error:")
        return
    try:
        session.sign_in(token)
    except ApiError as error:
        st.error(f"Not accepted: {f.plain(_words(error))}", icon=":material/error:")
    except ApiUnreachable as error:
        st.warning(f"**The API does not answer.** {f.plain(str(error))}", icon=":material/warning:")
    else:
        st.rerun()


def _words(error: ApiError) -> str:
    return error.problem.detail or error.problem.title
