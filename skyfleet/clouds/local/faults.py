"""Injected faults: rules that say which request is struck, how often, and by what.

A rule strikes when all that its `match` names is so, it has `times` left, and the dice (`probability`) say so. The
first rule that strikes a request decides; one rule can do several things at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from skyfleet.clouds.local import wording
from skyfleet.clouds.local.ledger import BootFaults, Ledger
from skyfleet.domain.states import Market

Operation = Literal["create", "get", "list", "terminate", "offers", "metadata"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Match(_Part):
    """Which requests. None matches all; `name` is a glob. A `list` or `offers` has no place, and a `get` or
    `terminate` of an unknown name has none either: a rule that names a place does not match those. A machine asks for
    its `metadata` every second: only a rule that names that operation matches it."""

    operation: Operation | None = None
    cloud: str | None = None
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    market: Market | None = None
    name: str | None = None

    def covers(self, operation: Operation, name: str, place: wording.Place | None) -> bool:
        """Whether the request is meant."""
        if self.operation != operation and (self.operation is not None or operation == "metadata"):
            return False
        if self.name is not None and not fnmatchcase(name, self.name):
            return False
        wanted = (self.cloud, self.region, self.zone, self.instance_type, self.market)
        if place is None:
            return wanted == (None,) * len(wanted)
        actual = (place.cloud, place.region, place.zone, place.instance_type, place.market)
        return all(want is None or want == have for want, have in zip(wanted, actual, strict=True))


class InjectedError(_Part):
    """An error as the rule spells it. `raw` empty: an HTTP error without a body of the cloud's, as proxies answer."""

    code: str = ""
    raw: str = ""
    status: int = Field(default=400, ge=400, le=599)


class Effect(_Part):
    """What happens. `error`, `real` and `rate_limit` refuse the request; the `boot_…` and `agent_dead` effects
    concern the machine that a `create` makes; delays are seconds."""

    error: InjectedError | None = None
    real: str | None = None  # a cloud's own code; the wording is filled in
    rate_limit: bool = False
    delay_before_s: float = Field(default=0.0, ge=0)  # before anything happens; ends with the rule, if that is sooner
    delay_after_s: float = Field(default=0.0, ge=0)  # it has happened, the reply is late
    drop_reply: bool = False  # it has happened, the connection closes without a reply
    boot_fails: str | None = None  # the machine ends before it runs, for this reason
    boot_delay_s: float = Field(default=0.0, ge=0)  # it comes up that much later
    never_boots: bool = False  # it stays pending for ever
    agent_dead: bool = False  # it runs, but its agent never starts

    @model_validator(mode="after")
    def _known_code(self) -> Effect:
        if self.real is not None and self.real not in wording.known_codes():
            raise ValueError(f"no wording for {self.real!r}; known: {', '.join(wording.known_codes())}")
        if sum((self.error is not None, self.real is not None, self.rate_limit)) > 1:
            raise ValueError("error, real and rate_limit exclude each other")
        return self

    def refusal(self, place: wording.Place | None) -> wording.Refusal | None:
        """The error that the request gets, if any."""
        place = place or wording.Place(cloud="local")
        if self.error is not None:
            return wording.Refusal(place.cloud, self.error.code, self.error.raw, self.error.status)
        if self.real is not None:
            return wording.real(self.real, place)
        return wording.rate_limited(place) if self.rate_limit else None

    def boot_faults(self) -> BootFaults:
        """What the machine that is created has to bear."""
        return BootFaults(self.boot_fails, self.boot_delay_s, self.never_boots, self.agent_dead)


class FaultRule(_Part):
    """One rule. `times`: how often it strikes, None for always."""

    match: Match = Match()
    times: int | None = Field(default=1, ge=1)
    probability: float = Field(default=1.0, gt=0, le=1)
    then: Effect


@dataclass(slots=True)
class _Armed:
    rule: FaultRule
    hits: int
    removed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Strike:
    """What a request suffers, from a rule that may be removed meanwhile."""

    effect: Effect
    removed: asyncio.Event | None = None

    async def hold_up(self) -> None:
        """The delay before anything happens."""
        if self.removed is not None and self.effect.delay_before_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.effect.delay_before_s):
                    await self.removed.wait()


_NO_STRIKE = Strike(Effect())


class Faults:
    """The rules in force; they outlive the cloud's process."""

    def __init__(self, ledger: Ledger, dice: random.Random) -> None:
        self._ledger = ledger
        self._dice = dice
        self._armed = {
            fault_id: _Armed(FaultRule.model_validate_json(rule), hits) for fault_id, rule, hits in ledger.faults()
        }

    def add(self, rule: FaultRule) -> int:
        """Put a rule in force; returns its id."""
        fault_id = self._ledger.add_fault(rule.model_dump_json())
        self._armed[fault_id] = _Armed(rule, 0)
        return fault_id

    def remove(self, fault_id: int | None = None) -> int:
        """Take one rule, or all, out of force; returns how many there were."""
        for removed in list(self._armed) if fault_id is None else [fault_id]:
            if removed in self._armed:
                self._armed.pop(removed).removed.set()
        return self._ledger.remove_faults(fault_id)

    def view(self) -> list[dict[str, Any]]:
        """All rules with their hit counts, as JSON."""
        return [
            {"id": fault_id, "hits": armed.hits, **armed.rule.model_dump(mode="json", exclude_defaults=True)}
            for fault_id, armed in self._armed.items()
        ]

    def strike(self, operation: Operation, name: str = "", place: wording.Place | None = None) -> Strike:
        """What the request suffers; counts the hit."""
        for fault_id, armed in self._armed.items():
            rule = armed.rule
            if rule.times is not None and armed.hits >= rule.times:
                continue
            if rule.match.covers(operation, name, place) and (
                rule.probability >= 1 or self._dice.random() < rule.probability
            ):
                armed.hits += 1
                self._ledger.count_fault(fault_id, armed.hits)
                return Strike(rule.then, armed.removed)
        return _NO_STRIKE
