"""The list of launches, newest first."""

from __future__ import annotations

from typing import Final

import streamlit as st

from skyfleet.domain.states import STAGE_LABEL, LaunchStatus, Role
from skyfleet.domain.views import LaunchList, LaunchSummary
from ui import catalog, session
from ui import format as f
from ui.components import live, page
from ui.components.paging import Pages

_PAGE: Final = 20
_BUSY_S: Final = 2.0
_IDLE_S: Final = 20.0  # a launch that somebody else starts shows up within this
_PAGES: Final = Pages("launches")


def show() -> None:
    """Draw the page."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Launches", anchor=False, width="content")
        if session.may(Role.OPERATOR) and st.button("New launch", type="primary", icon=":material/add:"):
            st.switch_page(session.NEW)
    statuses, model = _filters()

    def ask() -> LaunchList:
        return session.client().launches(status=statuses, model_name=model, cursor=_PAGES.cursor, limit=_PAGE)

    key = f"launches {statuses} {model} {_PAGES.number}"
    filtered = bool(statuses or model)
    with live.needs_api():
        live.live(ask, lambda found: _table(found, filtered), _pace, key)


def _filters() -> tuple[list[LaunchStatus], str | None]:
    with live.needs_api():
        names = [item.id for item in catalog.models()]
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    statuses = left.pills(
        "Status",
        [item.value for item in LaunchStatus],
        selection_mode="multi",
        format_func=lambda value: " ".join(f.LAUNCH[LaunchStatus(value)][:2]),
        key="status",
        on_change=_PAGES.first,
        bind="query-params",
        wrap=True,
    )
    model = right.selectbox(
        "Model", names, index=None, placeholder="All models", key="model", on_change=_PAGES.first, bind="query-params"
    )
    return [LaunchStatus(item) for item in statuses], model


def _pace(found: LaunchList) -> float:
    return _BUSY_S if any(not item.stage.terminal for item in found.launches) else _IDLE_S


def _table(found: LaunchList, filtered: bool) -> None:
    if not found.launches:
        _empty(filtered)
    for item in found.launches:
        _row(item)
    _PAGES.controls(found.next)


def _row(item: LaunchSummary) -> None:
    with st.container(border=True, key=f"row-{item.job_id}"):
        name, state, where, money = st.columns([4, 3.6, 3.4, 3.2], vertical_alignment="center")
    with name:
        page.launch_link(item.model_name, item.job_id)
        st.caption(f"{f.plain(item.job_id)} · {f.ago(item.created_at, f.now())}")
    sandbox = f" {f.sandbox_badge()}" if item.sandbox else ""
    stage = f"  \n:small[{item.progress} % · {STAGE_LABEL[item.stage]}]" if not item.stage.terminal else ""
    error = f"  \n:small[{f.plain(_short(item.error_message))}]" if item.error_message and item.stage.terminal else ""
    state.markdown(f"{f.launch_badge(item.status)}{sandbox}{stage}{error}")
    machine = f.plain(item.instance_type) if item.instance_type else "any type"
    where.markdown(f"{f.plain(f.place(item.provider, item.region, item.zone))}  \n:small[{machine}]")
    price = "no machine" if item.stage.terminal else "no price yet"
    if item.hourly_price is not None and item.market is not None:
        price = f"{f.plain(f.price(item.hourly_price))} {f.market(item.market)}"
    tries = f"{item.attempt_count} attempt{'' if item.attempt_count == 1 else 's'}"
    took = f" · took {f.duration((item.ended_at - item.created_at).total_seconds())}" if item.ended_at else ""
    money.markdown(f"{price}  \n:small[{tries}{took}]")


def _short(text: str) -> str:
    return text if len(text) <= 90 else text[:89].rstrip() + "…"


def _empty(filtered: bool) -> None:
    with st.container(border=True):
        if filtered or _PAGES.cursor:
            st.markdown("#### No launch is like that\nTake a filter away to see others.")
            return
        st.markdown(
            "#### Nothing has been launched yet\n"
            "A launch gets you one GPU machine that serves a model: on the cheapest place that has one, falling back "
            "to others where it has not."
        )
        if session.may(Role.OPERATOR):
            if st.button("Launch the first one", type="primary", icon=":material/rocket_launch:"):
                st.switch_page(session.NEW)
            st.caption("or, in a terminal:")
            st.code("skyfleet models\nskyfleet launch MODEL --spot --fallback-on-demand", language="shell")
        else:
            st.caption("Your key may look but not launch. Ask for one with the role `operator`.")


show()
