"""Parts of a launch's page. What is drawn is what the API said: no stage and no time is worked out here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import streamlit as st

from skyfleet.domain.errors import ClassifiedError
from skyfleet.domain.states import SHOWN_STAGES, AttemptState, LaunchStage, LaunchStatus
from skyfleet.domain.views import AttemptView, LaunchEvent, LaunchStatusView
from ui import format as f

_STAGE_BY_LABEL: Final = {label: stage for stage, label, _ in SHOWN_STAGES}
#: The sign that the API puts before a stage that was reached, as it is drawn; the others have none.
_SIGNS: Final = {"✓": ":green[✓]", "→": ":blue[→]", "✗": ":red[✗]"}
_EVENT_SIGNS: Final = {
    "attempt": "◇",
    "plan": "◇",
    "stage": "→",
    "progress": "→",
    "alert": "⚠",
    "end": "●",
    "node": "●",
}


def progress(view: LaunchStatusView) -> None:
    """The bar, at the API's own figure."""
    word = f"{view.progress} % · {view.stage_label}"
    if view.cancel_requested and not view.stage.terminal:
        word += " · cancelling: waits until the cloud confirms that nothing is left"
    st.progress(view.progress / 100, text=word)


def figures(view: LaunchStatusView) -> None:
    """The launch in four figures."""
    end = view.ended_at or f.now()
    with st.container(horizontal=True, gap="small"):
        attempts = str(view.attempt_count)
        st.metric("Attempts", attempts, border=True, width=130)
        label = "Took" if view.ended_at else "Running for"
        st.metric(label, f.duration((end - view.created_at).total_seconds()), border=True, width=170)
        price = "–" if view.hourly_price is None else f.plain(f.price(view.hourly_price))
        market = "" if view.market is None else f" ({f.market(view.market)})"
        st.metric(f"Price{market}", price, border=True, width=170)
        st.metric("Cost so far", f.plain(f.cost(view.cost)), border=True, width=150, help=_cost_help(view))


def _cost_help(view: LaunchStatusView) -> str:
    return "Machines of all attempts, by the second." + (
        " The sandbox bills nothing: this is what the named cloud's list price would make." if view.sandbox else ""
    )


def stages(view: LaunchStatusView, events: Sequence[LaunchEvent]) -> None:
    """The stages of the current attempt, each with the time at which it was reached."""
    reached = _reached(view, events)
    rows = []
    for line in view.stages:
        sign, label = line[0], line[2:]
        drawn = _SIGNS.get(sign, ":gray[○]")
        at = reached.get(_STAGE_BY_LABEL.get(label)) if sign in _SIGNS else None
        bold = f"**{label}**" if sign == "→" else label if sign in _SIGNS else f":gray[{label}]"
        rows.append(
            {
                "Stage": f"{drawn} {bold}",
                "Reached": f.clock(at) if at else "",
                "After": f.duration((at - view.created_at).total_seconds()) if at else "",
            }
        )
    st.table(rows, border="horizontal", hide_index=True)
    if view.stage is LaunchStage.READY:
        ended = f" at {f.clock(view.ended_at)}" if view.ended_at else ""
        st.markdown(f":green[✓] **ready**{ended}")


def _reached(view: LaunchStatusView, events: Sequence[LaunchEvent]) -> dict[LaunchStage | None, datetime]:
    """When each stage was first reported, for the launch as a whole or for its last attempt."""
    current = max((item.number for item in view.attempts), default=None)
    first: dict[LaunchStage | None, datetime] = {}
    for event in events:
        if event.kind == "stage" and event.attempt in (None, current):
            first.setdefault(event.stage, event.at)
    return first


def outcome(view: LaunchStatusView) -> None:
    """How the launch ended, and what can be done about it."""
    if view.status is LaunchStatus.COMPLETED:
        _node(view)
    elif view.status is LaunchStatus.CANCELLED:
        st.info("Cancelled. The cloud confirmed that nothing of this launch is left.", icon=":material/block:")
    elif view.status in (LaunchStatus.FAILED, LaunchStatus.TIMEOUT):
        what = "Timed out." if view.status is LaunchStatus.TIMEOUT else "Failed."
        message = view.error.message if view.error else view.error_message or "No reason was recorded."
        st.error(f"**{what}** {f.plain(message)}", icon=":material/error:")
        if view.error is not None:
            _next_steps(view.error)
            raw(view.error, "launch")


def _node(view: LaunchStatusView) -> None:
    if view.endpoint_url is None:
        return
    place = f.plain(f.place(view.provider, view.region, view.zone))
    sandbox = f" {f.sandbox_badge()}" if view.sandbox else ""
    with st.container(border=True):
        st.markdown(f"**✓ The node answers** · {f.plain(view.cluster_name or view.node_id or '')} in {place}{sandbox}")
        st.code(view.endpoint_url, language=None)
        st.caption("It speaks the OpenAI protocol. Ask it:")
        url = view.endpoint_url.rstrip("/") + "/v1/chat/completions"
        st.code(
            f"curl {url} -H 'Content-Type: application/json' \\\n"
            f'  -d \'{{"model": "{view.model_name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'',
            language="shell",
            wrap_lines=True,
        )


def _next_steps(error: ClassifiedError) -> None:
    if error.next_steps:
        st.markdown(
            "**What to try**\n" + "\n".join(f"{n}. {f.plain(step)}" for n, step in enumerate(error.next_steps, 1))
        )


def raw(error: ClassifiedError, key: str) -> None:
    """What the cloud said, word for word, a click away."""
    if error.raw.strip():
        who = error.cloud or "the cloud"
        with st.expander(f"What {f.plain(who)} said, word for word", key=f"raw-{key}"):
            st.code(error.raw, language=None, wrap_lines=True)


def attempts(view: LaunchStatusView) -> None:
    """Each place that was tried, and what came of it."""
    if not view.attempts:
        st.caption("None yet." if not view.stage.terminal else "None: nothing was asked of any cloud.")
    for attempt in view.attempts:
        _attempt(attempt)


def _attempt(attempt: AttemptView) -> None:
    with st.container(border=True, key=f"attempt-{attempt.number}"):
        place = f.plain(f.place(attempt.provider, attempt.region, attempt.zone))
        end = attempt.closed_at or (None if attempt.state is AttemptState.SUCCEEDED else f.now())
        took = [f.duration((end - attempt.opened_at).total_seconds())] if end else []
        facts = [
            f.plain(attempt.instance_type),
            f.market(attempt.market),
            f.plain(f.price(attempt.hourly_price)),
            *took,
            f"cost {f.plain(f.cost(attempt.cost))}",
        ]
        st.markdown(
            f"**{attempt.number}. {place}** {f.attempt_badge(attempt)}{_gone(attempt)}  \n:small[{' · '.join(facts)}]"
        )
        if attempt.error is not None:
            st.markdown(f.plain(attempt.error.message))
            if attempt.error.next_steps:
                st.caption("To try: " + " · ".join(f.plain(step.rstrip(".")) for step in attempt.error.next_steps))
            raw(attempt.error, str(attempt.number))


def _gone(attempt: AttemptView) -> str:
    if attempt.state is AttemptState.CLOSING:
        return " :small[:gray[tearing down, not gone yet]]"
    if attempt.state is AttemptState.CLOSED:
        return " :small[:gray[gone, the cloud confirmed it]]"
    return ""


def timeline(events: Sequence[LaunchEvent]) -> None:
    """Every event, newest first."""
    if not events:
        st.caption("Nothing has been reported yet.")
        return
    rows = [
        {
            "Time": f.clock(event.at),
            "Attempt": "" if event.attempt is None else str(event.attempt),
            "What happened": f"{_EVENT_SIGNS.get(event.kind, '·')} {f.plain(event.message)}",
        }
        for event in reversed(events)
    ]
    st.table(rows, border="horizontal", hide_index=True, height=320 if len(rows) > 8 else "content")
