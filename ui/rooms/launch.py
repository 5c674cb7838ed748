"""One launch: `/launch?job=launch-…`. Shows the same on a reload, or a day later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import streamlit as st

from skyfleet.client import ApiError, ApiUnreachable
from skyfleet.domain.launches import LaunchSpec
from skyfleet.domain.states import LaunchStage, Role
from skyfleet.domain.views import LaunchEvent, LaunchStatusView
from ui import format as f
from ui import session
from ui.components import launch as parts
from ui.components import live, page
from ui.draft import Draft
from ui.follow import follower

_BUSY_S: Final = 1.0
_READY_S: Final = 20.0  # the cost of its node goes on
_STATUS_S: Final = 3.0  # without a new event, the status is asked for this often


@dataclass(frozen=True)
class Launch:
    """A launch, and its events as far as they have come in."""

    view: LaunchStatusView
    events: list[LaunchEvent]


def show() -> None:
    """Draw the page."""
    job_id = st.query_params.get("job")
    if not job_id:
        _which()
        return
    st.page_link(session.LAUNCHES, label="All launches", icon=":material/arrow_back:")

    try:
        with live.needs_api():
            live.live(lambda: _ask(job_id), _body, _pace, f"launch {job_id}", head=lambda found: _head(found.view))
    except _NoSuchLaunch as error:
        st.error(f"**There is no such launch.** {f.plain(str(error))}", icon=":material/error:")
        _which()


class _NoSuchLaunch(Exception):
    """Nothing of that id that this key may see."""


def _which() -> None:
    page.heading("Launch")
    with st.form("which"):
        job_id = st.text_input("Id of a launch", placeholder="launch-…")
        if st.form_submit_button("Open") and job_id:
            st.query_params["job"] = job_id.strip()
            st.rerun()
    st.page_link(session.LAUNCHES, label="See all launches", icon=":material/list:")


def _ask(job_id: str) -> Launch:
    """The events that have come in, and the status, which is asked for again only when it can have changed."""
    found = session.who()
    assert found is not None
    following = follower(session.api_url(), found.token, job_id)
    known: tuple[int, float, LaunchStatusView] | None = st.session_state.get(f"status {job_id}")
    events = following.wait(complete=False, timeout_s=2.0)
    last = events[-1].seq if events else 0
    now = f.now().timestamp()
    if known is None or known[0] != last or now - known[1] > _STATUS_S or known[2].stage.terminal:
        try:
            view = session.client().status(job_id)
        except ApiError as error:
            if error.status in (404, 422):
                raise _NoSuchLaunch(str(error)) from error
            raise
        known = (last, now, view)
        st.session_state[f"status {job_id}"] = known
    view = known[2]
    return Launch(view, following.wait(complete=True, timeout_s=2.0) if view.stage.terminal else events)


def _pace(found: Launch) -> float | None:
    if not found.view.stage.terminal:
        return _BUSY_S
    return _READY_S if found.view.stage is LaunchStage.READY else None


def _head(view: LaunchStatusView) -> None:
    """What stays while the rest refreshes, so that a question that was asked is not taken away."""
    page.heading(view.model_name, f.launch_badge(view.status), sandbox=view.sandbox)
    deployment = f" · deployment {f.plain(view.deployment)}" if view.deployment else ""
    st.caption(
        f"{f.plain(view.job_id)} · asked for by {f.plain(view.requested_by)} on {f.moment(view.created_at)}{deployment}"
        f" · times in {f.zone_name()}"
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.link_button("Temporal workflow", view.workflow_url, icon=":material/account_tree:", help=view.workflow_id)
        if session.may(Role.OPERATOR):
            if not view.stage.terminal:
                _cancel(view)
            elif st.button("Launch again…", icon=":material/replay:", help="Opens the form with the same choices."):
                st.session_state["draft"] = Draft.again(view.requested)
                st.session_state["step"] = "configuration"
                st.switch_page(session.NEW)
            if view.stage is LaunchStage.READY:
                st.page_link(session.NODES, label="Terminate its node", icon=":material/power_settings_new:")
    said = st.session_state.pop("cancel_said", None)
    if said is not None:
        st.error(said, icon=":material/error:")


def _cancel(view: LaunchStatusView) -> None:
    if view.cancel_requested:
        st.markdown(":orange-badge[→ cancelling]", width="content")
        return
    with st.popover("Cancel launch…", icon=":material/cancel:"):
        st.markdown(
            "Give up this launch and tear down what it has so far? It ends as *cancelled* once the cloud confirms that "
            "nothing is left."
        )
        if st.button("Cancel this launch", type="primary"):
            try:
                session.client().cancel(view.job_id)
            except ApiError as error:
                if error.status == 401:
                    session.refused(error)
                st.session_state["cancel_said"] = f"Not cancelled: {f.plain(str(error))}"
            except ApiUnreachable as error:
                st.session_state["cancel_said"] = f"Not cancelled: {f.plain(str(error))}"
            st.session_state.pop(f"status {view.job_id}", None)
            st.rerun()


def _body(found: Launch) -> None:
    view, events = found.view, found.events
    parts.progress(view)
    parts.outcome(view)
    parts.figures(view)
    left, right = st.columns([5, 6], gap="large")
    with left:
        st.subheader("Stages", anchor=False)
        parts.stages(view, events)
        st.subheader("Asked for", anchor=False)
        _requested(view)
    with right:
        st.subheader("Attempts", anchor=False)
        parts.attempts(view)
    st.subheader("Timeline", anchor=False)
    parts.timeline(events)


def _requested(view: LaunchStatusView) -> None:
    known = {name: value for name, value in view.requested.items() if name in LaunchSpec.model_fields and name != "env"}
    spec = LaunchSpec.model_validate(known)
    fallback = []
    if spec.fallback.regions:
        fallback.append("other regions" if spec.fallback.regions == "any" else ", ".join(spec.fallback.regions))
    if spec.fallback.clouds:
        fallback.append("other clouds" if spec.fallback.clouds == "any" else ", ".join(spec.fallback.clouds))
    if spec.fallback.on_demand:
        fallback.append("on-demand")
    lines = [
        ("Place", f.place(spec.provider, spec.region, spec.zone)),
        ("Machine", spec.instance_type or spec.gpu or "any that fits"),
        ("Market", spec.market.value.replace("_", " ").replace("on demand", "on-demand")),
        ("Falls back to", "; ".join(fallback) or "nothing else"),
        ("At most", f.price(spec.max_hourly_cost) if spec.max_hourly_cost else "no limit"),
    ]
    if spec.engine:
        lines.append(("Engine", " ".join([spec.engine, *spec.engine_args])))
    st.markdown("  \n".join(f":gray[{name}] {f.plain(value)}" for name, value in lines))


show()
