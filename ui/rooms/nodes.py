"""The machines that run, or ran."""

from __future__ import annotations

from typing import Final

import streamlit as st

from skyfleet.client import ApiError, ApiUnreachable
from skyfleet.domain.states import NodeStatus, Role
from skyfleet.domain.views import NodeInfo, NodeList
from ui import format as f
from ui import session
from ui.components import live, page
from ui.components.paging import Pages

_PAGE: Final = 20
_PACE_S: Final = 5.0
_IDLE_S: Final = 20.0
_PAGES: Final = Pages("nodes")


def show() -> None:
    """Draw the page."""
    page.heading("Nodes")
    with_gone = st.toggle("Show terminated nodes", key="terminated", bind="query-params", on_change=_PAGES.first)
    statuses = [] if with_gone else [item for item in NodeStatus if item is not NodeStatus.TERMINATED]

    def ask() -> NodeList:
        return session.client().nodes(status=statuses, cursor=_PAGES.cursor, limit=_PAGE)

    with live.needs_api():
        live.live(ask, _list, _pace, f"nodes {with_gone} {_PAGES.number}")


def _pace(found: NodeList) -> float:
    return _PACE_S if any(item.status is not NodeStatus.TERMINATED for item in found.nodes) else _IDLE_S


def _list(found: NodeList) -> None:
    said = st.session_state.pop("node_said", None)
    if said is not None:
        (st.success if said[0] else st.error)(said[1])
    if not found.nodes:
        with st.container(border=True):
            st.markdown("#### No node runs\nA node appears here when a launch reaches *ready*.")
            if session.may(Role.OPERATOR) and st.button("New launch", type="primary", icon=":material/add:"):
                st.switch_page(session.NEW)
    for item in found.nodes:
        _node(item)
    _PAGES.controls(found.next)


def _node(item: NodeInfo) -> None:
    now = f.now()
    with st.container(border=True, key=f"node-{item.node_id}"):
        name, health, where, money, action = st.columns([3.8, 3, 3.4, 2.4, 3], vertical_alignment="center")
    with name:
        page.launch_link(item.model_name, item.launch_id)
        st.caption(f.plain(item.cluster_name))
    sandbox = f" {f.sandbox_badge()}" if item.sandbox else ""
    beat = f"heartbeat {f.ago(item.last_heartbeat_at, now)}" if item.last_heartbeat_at else "no heartbeat yet"
    message = f"  \n:small[{f.plain(item.status_message)}]" if item.status_message else ""
    score = "" if item.health_score is None else f"health {item.health_score:.0%} · "
    health.markdown(f"{f.node_badge(item.status)}{sandbox}{message}  \n:small[{score}{beat}]")
    gpu = f" · {f.plain(item.gpu_type)}" if item.gpu_type else ""
    where.markdown(
        f"{f.plain(f.place(item.provider, item.region, item.zone))}  \n:small[{f.plain(item.instance_type)}{gpu}]"
    )
    money.markdown(
        f"{f.plain(f.price(item.cost_per_hour))} {f.market(item.market)}  \n:small[{f.plain(f.cost(item.cost))} so far]"
    )
    with action:
        if item.status in (NodeStatus.READY, NodeStatus.DRAINING) and session.may(Role.OPERATOR):
            with st.popover("Terminate…", width="stretch"):
                st.markdown(
                    f"End **{f.plain(item.cluster_name)}** and its machine? Requests that it is answering are cut off. "
                    "This cannot be undone."
                )
                if st.button("Terminate this node", type="primary", key=f"terminate-{item.node_id}"):
                    _terminate(item)
        else:
            registered = f.ago(item.registered_at, now)
            st.caption(f"registered {registered}")


def _terminate(item: NodeInfo) -> None:
    name = f.plain(item.cluster_name)
    try:
        session.client().terminate(item.cluster_name)
    except ApiError as error:
        if error.status == 401:
            session.refused(error)
        st.session_state["node_said"] = (False, f"**{name}** was not terminated: {f.plain(str(error))}")
    except ApiUnreachable as error:
        st.session_state["node_said"] = (False, f"**{name}** was not terminated: {f.plain(str(error))}")
    else:
        st.session_state["node_said"] = (True, f"**{name}** is being terminated. It is gone when its cloud says so.")
    st.rerun()


show()
