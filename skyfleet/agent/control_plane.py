"""Talks to the control plane: stage reports, registration, heartbeats, notices of the cloud.

What the control plane answers decides what becomes of the machine:

- 2xx: done.
- 410: the launch attempt was given up. Final, at once.
- 401, 404: the control plane does not know this node or its credential. Final as well, because a machine that nobody
  claims must not go on billing; but only after it was said three times in a row, because a load balancer in front of a
  control plane that is being updated also says 404.
- anything else, or no answer: it is away, or not ready for this yet. Asked again for ever, with exponential back-off up
  to 15 s and jitter, so that a thousand agents do not come back in the same second. With a limit to its patience
  (`Boot.control_plane_patience_s`) the agent takes one that gave no answer for so long to be gone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from skyfleet.agent.config import Boot
from skyfleet.agent.http import Answer, Unreachable, request
from skyfleet.agent.logs import log, now_iso

GONE = 410
_UNKNOWN = (401, 404)
_SAID_BEFORE_FINAL = 3
_FIRST_BACK_OFF_S = 0.5
_MAX_BACK_OFF_S = 15.0
_REQUEST_TIMEOUT_S = 10.0
#: A machine that is taken away has seconds: a warning that is not answered soon is sent again.
_WARNING_TIMEOUT_S = 3.0
#: A control plane that cannot read a warning will not read it the next time either.
_UNREADABLE = (400, 413, 422)
_MAX_DETAIL_CHARS = 500


class Dismissed(Exception):
    """The control plane does not want this machine: power it off. Holds the status that said so."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the control plane answered {status}")
        self.status = status


class Abandoned(Dismissed):
    """The control plane has been away for so long that it is taken to be gone: nobody would ever end this machine."""

    def __init__(self) -> None:
        super().__init__(0)


@dataclass(frozen=True)
class StageReached:
    """A stage and when it was observed (ISO 8601, UTC)."""

    stage: str
    at: str
    detail: str


class BackOff:
    """Delays in seconds: 0.5, 1, 2 … up to 15, each shortened at random by up to a half."""

    def __init__(self) -> None:
        self._next = _FIRST_BACK_OFF_S

    def delay_s(self) -> float:
        """The next delay."""
        delay, self._next = self._next, min(2 * self._next, _MAX_BACK_OFF_S)
        return delay * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing


class ControlPlane:
    """One node's view of the control plane."""

    def __init__(self, boot: Boot) -> None:
        self._boot = boot
        self._node = f"{boot.control_plane_url}/admin/nodes/{quote(boot.node_id, safe='')}"
        self._unknown_in_a_row = 0
        self._heard_at = time.monotonic()

    async def report_stage(self, reached: StageReached) -> None:
        """Say that a stage was reached; returns when the control plane has it. Raises `Dismissed`."""
        body = {"stage": reached.stage, "at": reached.at, "detail": reached.detail[:_MAX_DETAIL_CHARS]}
        await self._until_done("stage", f"{self._node}/stages", body, self._with_token())

    async def report_engine_failed(self, why: str, log_tail: Sequence[str]) -> None:
        """Say that the engine never became ready, with its last log lines. Raises `Dismissed`."""
        body = {
            "stage": "ENGINE_FAILED",
            "at": now_iso(),
            "detail": why[:_MAX_DETAIL_CHARS],
            "log_tail": list(log_tail),
        }
        await self._until_done("engine_failed", f"{self._node}/stages", body, self._with_token())

    async def register(self, idempotency_key: str, stages: Sequence[StageReached]) -> str:
        """Register the node; returns its heartbeat key. Raises `Dismissed`.

        The same idempotency key makes a repeated registration the same one, so a lost answer is asked for again.
        """
        boot = self._boot
        body = {
            "provider": boot.provider,
            "region": boot.region,
            "model_name": boot.model_name,
            "endpoint_url": boot.endpoint_url,
            "gpu_type": boot.gpu_type,
            "instance_type": boot.instance_type,
            "spot_instance": boot.spot_instance,
            "registration_token": boot.registration_token,
            "engine": boot.engine,
            "agent_version": boot.agent_version,
            "sandbox": boot.sandbox,
            "stages": [{"stage": reached.stage, "at": reached.at} for reached in stages],
        }
        url = f"{boot.control_plane_url}/admin/nodes/register?node_id={quote(boot.node_id, safe='')}"
        while True:
            answer = await self._until_done("register", url, body, {"Idempotency-Key": idempotency_key} | self._trace())
            key = answer.json().get("heartbeat_key")
            if isinstance(key, str) and key:
                return key
            log("control_plane.no_heartbeat_key", level="error", status=answer.status)
            await asyncio.sleep(_MAX_BACK_OFF_S)

    async def heartbeat(self, key: str, body: Mapping[str, Any]) -> str | None:
        """Send one heartbeat; the directive, or None when there was no use in the answer. Raises `Dismissed`."""
        answer = await self._once("heartbeat", f"{self._node}/heartbeat", body, {"Authorization": f"Bearer {key}"})
        directive = answer.json().get("directive") if answer is not None else None
        return directive if isinstance(directive, str) else None

    async def warn(self, key: str, *, kind: str, source: str, detail: str, deadline: str | None) -> bool:
        """Say once that the cloud takes the machine away or works on it; whether that is done. Raises `Dismissed`.

        Hearing it twice is hearing it once, so an answer that was lost is no harm.
        """
        answer = await self._once(
            "termination_warning",
            f"{self._node}/termination-warning",
            {"kind": kind, "source": source, "detail": detail, "deadline": deadline},
            {"Authorization": f"Bearer {key}"},
            timeout_s=_WARNING_TIMEOUT_S,
            final=_UNREADABLE,
        )
        return answer is not None

    def _with_token(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._boot.registration_token}"} | self._trace()

    def _trace(self) -> dict[str, str]:
        """Makes stages and registration part of the launch's trace; heartbeats, which outlive it, are none."""
        return {"traceparent": self._boot.traceparent} if self._boot.traceparent else {}

    async def _until_done(self, what: str, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        back_off = BackOff()
        while True:
            answer = await self._once(what, url, body, headers)
            if answer is not None:
                return answer
            await asyncio.sleep(back_off.delay_s())

    async def _once(
        self,
        what: str,
        url: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        timeout_s: float = _REQUEST_TIMEOUT_S,
        final: Sequence[int] = (),
    ) -> Answer | None:
        """One request; None when it has to be tried again (a status of `final` has not). Raises `Dismissed`."""
        try:
            answer = await request("POST", url, headers=headers, body=body, timeout_s=timeout_s)
        except Unreachable as error:
            log("control_plane.away", level="warning", what=what, reason=error)
            patience_s = self._boot.control_plane_patience_s
            if patience_s is not None and time.monotonic() - self._heard_at > patience_s:
                raise Abandoned from None
            return None
        self._heard_at = time.monotonic()
        if 200 <= answer.status < 300:
            self._unknown_in_a_row = 0
            return answer
        log("control_plane.refused", level="warning", what=what, status=answer.status)
        self._unknown_in_a_row = self._unknown_in_a_row + 1 if answer.status in _UNKNOWN else 0
        if answer.status == GONE or self._unknown_in_a_row >= _SAID_BEFORE_FINAL:
            raise Dismissed(answer.status)
        return answer if answer.status in final else None
