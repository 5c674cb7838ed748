"""Parts of a page that refresh themselves, and what is shown while the API does not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, NoReturn, TypeVar

import streamlit as st

from skyfleet.client import ApiError, ApiUnreachable
from ui import format as f
from ui import session

T = TypeVar("T")

_RETRY_S: Final = 3.0
_BUSY: Final = frozenset({502, 503, 504})


@dataclass
class Loaded(Generic[T]):
    """What the API answered last, when, and why it could not be asked since."""

    value: T
    at: datetime
    lost: str | None = None


def load(key: str, ask: Callable[[], T]) -> Loaded[T] | None:
    """The API's answer; while it does not answer, the last one of this session, or None when there is none.

    Shows the banner when the API is lost, and the sign-in when it no longer accepts the key. Other refusals go on to
    the caller as `ApiError`.
    """
    known: dict[str, Loaded[T]] = st.session_state.setdefault("known", {})
    try:
        known[key] = Loaded(ask(), f.now())
        return known[key]
    except ApiError as error:
        if error.status == 401:
            session.refused(error)
        if error.status not in _BUSY:
            raise
        reason = error.problem.detail or error.problem.title
    except ApiUnreachable as error:
        reason = str(error)
    before = known.get(key)
    banner(reason, before.at if before else None)
    return Loaded(before.value, before.at, reason) if before else None


def banner(reason: str, at: datetime | None) -> None:
    """Says that the API is away, and how old what is shown is."""
    shown = f"What you see is from {f.clock(at)}. " if at else ""
    st.warning(
        f"**The API does not answer.** {shown}This page tries again by itself every few seconds.  \n"
        f":small[{f.plain(reason)}]",
        icon=":material/warning:",
    )


def live(
    ask: Callable[[], T],
    show: Callable[[T], None],
    every: Callable[[T], float | None],
    key: str,
    head: Callable[[T], None] | None = None,
) -> None:
    """Show what `ask` answers, and again every `every(answer)` seconds; None: only when the person does something.

    Refreshes this part of the page alone; `head` is drawn once, above it. While the API is away it is asked every few
    seconds, and the last answer is shown.
    """
    first = [load(key, ask)]
    if head is not None and first[0] is not None:
        head(first[0].value)

    def pause(loaded: Loaded[T] | None) -> float | None:
        return _RETRY_S if loaded is None or loaded.lost else every(loaded.value)

    pace = pause(first[0])

    def body() -> None:
        loaded = first.pop() if first else load(key, ask)
        if loaded is not None:
            show(loaded.value)
        if pause(loaded) != pace:
            st.rerun()

    st.fragment(body, run_every=pace)()


@contextmanager
def needs_api() -> Iterator[None]:
    """For parts that cannot do without an answer: say what is wrong, and come back by itself.

    Ends the run of the script when the API refuses or does not answer.
    """
    try:
        yield
        return
    except ApiError as error:
        if error.status == 401:
            session.refused(error)
        if error.status not in _BUSY:
            st.error(f.plain(str(error)), icon=":material/error:")
            st.stop()
        reason = error.problem.detail or error.problem.title
    except ApiUnreachable as error:
        reason = str(error)
    wait_for_api(reason)


def wait_for_api(reason: str) -> NoReturn:
    """Show the banner in place of the rest of the page, and draw the page again once the API answers."""
    banner(reason, None)
    first = [True]

    def watch() -> None:
        if first:
            first.clear()
        elif session.api_answers():
            st.rerun()

    st.fragment(watch, run_every=_RETRY_S)()
    st.stop()
