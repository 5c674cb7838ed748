"""What every room begins with."""

from __future__ import annotations

from typing import Final

import streamlit as st

from ui import format as f
from ui import session

SANDBOX: Final = (
    "The local cloud of `skyfleet up`: real names and list prices, machines that are processes on this computer. "
    "Nothing is billed."
)


def heading(title: str, *badges: str, sandbox: bool = False) -> None:
    """The title of the page, badges beside it, and whether what it shows is the sandbox."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.title(title, anchor=False, width="content")
        for badge in badges:
            st.markdown(badge, width="content")
        if sandbox:
            st.markdown(f.sandbox_badge(), width="content", help=SANDBOX)


def signed_in_as() -> None:
    """Who is signed in, and the way out, at the foot of the side bar."""
    found = session.who()
    assert found is not None
    with st.sidebar:
        api = session.api_url().partition("://")[2]
        st.caption(f"{f.plain(found.identity.principal)} · {found.identity.role.value}  \n{f.plain(api)}")
        if st.button("Sign out", type="tertiary", icon=":material/logout:"):
            session.sign_out()
            st.rerun()


def launch_link(model_name: str, job_id: str) -> None:
    """The way to a launch's page, under the model's own name: the organisation's before it would be cut off."""
    st.page_link(
        session.LAUNCH,
        label=f"**{f.plain(model_name.rpartition('/')[2])}**",
        query_params={"job": job_id},
        help=f"{model_name}: open {job_id}",
    )
