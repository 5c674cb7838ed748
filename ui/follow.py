"""Follows a launch's events in the background, so that a page that is drawn again has them at once.

One connection for each launch page that is open: the API pushes, nobody asks every second.
"""

from __future__ import annotations

import contextlib
import threading

import streamlit as st

from skyfleet.client import ApiError, ApiUnreachable, SkyfleetClient
from skyfleet.domain.views import LaunchEvent

_PATIENCE_S = 24 * 3600.0
_PAUSE_S = 0.05


class Follower:
    """The events of one launch, as far as they have come in."""

    def __init__(self, client: SkyfleetClient, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._events: list[LaunchEvent] = []
        self._came = threading.Condition()
        self._ended = False
        threading.Thread(target=self._run, name=f"follow {job_id}", daemon=True).start()

    def wait(self, *, complete: bool, timeout_s: float) -> list[LaunchEvent]:
        """The events so far, at first once those that are past have come in; `complete`: once all have.

        Answers with what there is after `timeout_s`. Past events come at once: a pause means that it was the last.
        """
        with self._came:
            if complete or not self._events:
                self._came.wait_for(lambda: self._ended or (bool(self._events) and not complete), timeout_s)
                while not self._ended and self._came.wait(_PAUSE_S):
                    pass
            return list(self._events)

    def close(self) -> None:
        """Stop following."""
        self._client.close()

    def _run(self) -> None:
        # A refusal (the key was revoked) reaches the page by its own requests. The client is closed under us when the
        # session ends: httpx says so with RuntimeError.
        with contextlib.suppress(ApiError, ApiUnreachable, RuntimeError):
            for event in self._client.events(self._job_id, patience_s=_PATIENCE_S):
                with self._came:
                    self._events.append(event)
                    self._came.notify_all()
        with self._came:
            self._ended = True
            self._came.notify_all()


def _close(follower: Follower) -> None:
    follower.close()


@st.cache_resource(scope="session", on_release=_close, max_entries=3, show_spinner=False)
def follower(url: str, token: str, job_id: str) -> Follower:
    """The follower of that launch in this browser session; it ends with the session."""
    return Follower(SkyfleetClient(url, token), job_id)
