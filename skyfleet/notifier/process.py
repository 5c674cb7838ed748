"""Calls the process that sends. What hangs in it is killed with it; its memory goes back with it too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from skyfleet.domain.sending import Address, Outcome, Outgoing, SentState

#: What the process takes to load and to end, at most, on a machine that is busy.
_START_SECONDS: Final = 20.0
#: Of our environment it gets what finds libraries, certificates and proxies; no secret of ours.
_ENVIRONMENT: Final = (
    *("PATH", "LANG", "LC_ALL", "TZ", "HOME"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)


class NotifierFailed(Exception):
    """The process did not answer; `str()` says why."""


class Notifier:
    """`activities.notifications.Sender`, and the check of an address. `seconds` is the time for one call of `send`."""

    def __init__(self, *, seconds: float = 15.0) -> None:
        self._seconds = seconds

    async def check(self, url: str) -> Address:
        """What apprise makes of the address; nothing is sent. Raises `NotifierFailed`."""
        answers, failure = await _ask({"check": url}, _START_SECONDS)
        if not answers:
            raise NotifierFailed(failure)
        return Address.model_validate(answers[0])

    async def send(self, messages: Sequence[Outgoing]) -> dict[int, Outcome]:
        """Send the messages, each channel's in the order given; how each went, by id.

        It takes `seconds` and the time to start, at most: a receiver that hangs holds up nobody else's. A message that
        a receiver did not answer in time may have arrived.
        """
        channels: dict[str, dict[str, Any]] = {}
        for message in messages:
            channel = channels.setdefault(
                message.channel_id, {"channel_id": message.channel_id, "url": message.url, "messages": []}
            )
            channel["messages"].append(message.model_dump(include={"id", "title", "body", "severity"}))
        request = {"send": list(channels.values()), "seconds": self._seconds}
        answers, failure = await _ask(request, self._seconds + _START_SECONDS)
        outcomes = {answer["id"]: Outcome.model_validate(answer) for answer in answers}
        for channel in channels.values():
            missing = [message["id"] for message in channel["messages"] if message["id"] not in outcomes]
            for number, message_id in enumerate(missing):
                # The first of them was under way, the others were not begun.
                state = SentState.FAILED if number == 0 else SentState.NOT_TRIED
                outcomes[message_id] = Outcome(state=state, error=failure or f"no answer in {self._seconds:g} s")
        return outcomes


async def _ask(request: dict[str, Any], timeout_s: float) -> tuple[list[dict[str, Any]], str]:
    """What the process answers until it ends, which is after `timeout_s` seconds at the latest, and why it failed."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "skyfleet.notifier"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # it may name the address
            env=environment,
        )
    except OSError as error:
        return [], f"the notifier could not be started: {error}"
    assert process.stdin is not None
    assert process.stdout is not None
    answers: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(timeout_s):
            with contextlib.suppress(ConnectionError):
                process.stdin.write(json.dumps(request).encode())
                await process.stdin.drain()
                process.stdin.close()
            async for line in process.stdout:
                answers.append(json.loads(line))
            status = await process.wait()
    except TimeoutError:
        return answers, f"the notifier did not end in {timeout_s:g} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return answers, f"the notifier ended with status {status}" if status else ""
