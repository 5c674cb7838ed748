"""The dashboard: `streamlit run ui/app.py`, or `python -m ui`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import streamlit as st

from skyfleet.domain.states import Role
from ui import session
from ui.components import live, page, sign_in

LOGO: Final = Path(__file__).with_name("logo.svg")

st.set_page_config(page_title="Skyfleet", page_icon="🛰️", layout="wide", initial_sidebar_state=240)
st.logo(str(LOGO), size="large")

lost = sign_in.preset()
# Known to the router also before anybody has signed in, so that the address stays while the key is asked for.
pages = [
    st.Page(session.LAUNCHES, title="Launches", icon=":material/rocket_launch:", default=True),
    st.Page(session.NODES, title="Nodes", icon=":material/memory:", url_path="nodes"),
    st.Page(session.LAUNCH, title="Launch", url_path="launch", visibility="hidden"),
    st.Page(
        session.NEW,
        title="New launch",
        icon=":material/add_circle:",
        url_path="new",
        visibility="visible" if session.may(Role.OPERATOR) else "hidden",
    ),
]

if session.who() is not None:
    current = st.navigation(pages)
    page.signed_in_as()
    current.run()
else:
    st.navigation(pages, position="hidden")
    if lost is not None:
        live.wait_for_api(lost)
    sign_in.form()
