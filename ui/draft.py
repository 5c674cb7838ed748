"""The launch that a person is putting together: what they chose, and the request, command line and price it makes."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from skyfleet.domain.launches import Deadlines
from skyfleet.domain.states import Market
from skyfleet.domain.views import FieldProblem, OfferView, Problem

_DEADLINES: Final = Deadlines()

#: Which step of the form asks for a field of the request.
STEP_OF: Final = {"model_name": "model", "instance_type": "instance", "gpu": "instance"}


@dataclass
class Draft:
    """Choices so far. None for provider, region or instance type means any, cheapest first."""

    model_name: str | None = None
    provider: str | None = None
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    spot: bool = False
    other_regions: bool = True
    other_clouds: bool = False
    then_on_demand: bool = True
    max_hourly_cost: Decimal | None = None
    provision_minutes: float = _DEADLINES.provision_seconds / 60
    registration_minutes: float = _DEADLINES.registration_seconds / 60
    engine: str | None = None
    engine_args: str = ""
    refused: Refused | None = None
    sent: bool = False  # it became a launch: the form begins anew when it is opened the next time
    _key: tuple[str, str] | None = field(default=None, repr=False)

    # --- the request ----------------------------------------------------------------------------------------

    def body(self) -> dict[str, Any]:
        """The body of `POST /admin/instances/launch`, with nothing in it that says what is so anyway.

        Raises `ValueError` when the engine arguments cannot be split.
        """
        fallback: dict[str, Any] = {}
        if self.other_regions and self.region:
            fallback["regions"] = "any"
        if self.other_clouds and self.provider:
            fallback["clouds"] = "any"
        if self.spot and self.then_on_demand:
            fallback["on_demand"] = True
        deadlines = {
            name: seconds
            for name, seconds in (
                ("provision_seconds", self.provision_minutes * 60),
                ("registration_seconds", self.registration_minutes * 60),
            )
            if seconds != getattr(_DEADLINES, name)
        }
        asked = {
            "model_name": self.model_name,
            "provider": self.provider,
            "region": self.region,
            "zone": self.zone,
            "instance_type": self.instance_type,
            "use_spot": self.spot or None,
            "fallback": fallback or None,
            "max_hourly_cost": None if self.max_hourly_cost is None else f"{self.max_hourly_cost:f}",
            "engine": self.engine,
            "engine_args": self.arguments() or None,
            "deadlines": deadlines or None,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def arguments(self) -> list[str]:
        """Engine arguments as a vector, a value joined to its name by `=`. Raises `ValueError` for an open quote."""
        vector: list[str] = []
        for word in shlex.split(self.engine_args):
            if not word.startswith("-") and vector and vector[-1].startswith("--") and "=" not in vector[-1]:
                vector[-1] += f"={word}"
            else:
                vector.append(word)
        return vector

    def idempotency_key(self) -> str:
        """The key under which this very request is sent, however often; another request gets another key."""
        request = json.dumps(self.body(), sort_keys=True)
        if self._key is None or self._key[0] != request:
            self._key = (request, uuid.uuid4().hex)
        return self._key[1]

    def command(self) -> str:
        """The same as a command line."""
        body = self.body()
        fallback = body.get("fallback", {})
        words = ["skyfleet", "launch", str(self.model_name)]
        for option, name in (
            ("--provider", "provider"),
            ("--region", "region"),
            ("--zone", "zone"),
            ("--instance-type", "instance_type"),
        ):
            if name in body:
                words += [option, body[name]]
        words += ["--spot"] if self.spot else []
        words += ["--fallback-region", "any"] if "regions" in fallback else []
        words += ["--fallback-cloud", "any"] if "clouds" in fallback else []
        words += ["--fallback-on-demand"] if "on_demand" in fallback else []
        if "max_hourly_cost" in body:
            words += ["--max-hourly-cost", body["max_hourly_cost"]]
        for name, seconds in body.get("deadlines", {}).items():
            words += [f"--{name.removesuffix('_seconds')}-deadline", f"{seconds:g}"]
        words += ["--engine", self.engine] if self.engine else []
        for argument in self.arguments():
            words.append(f"--engine-arg={argument.removeprefix('--')}")
        return _wrapped(words)

    def curl(self, api: str) -> str:
        """The same as a request to the API."""
        return (
            f"curl -X POST {shlex.quote(api + '/admin/instances/launch')} \\\n"
            '  -H "X-Admin-Token: $ADMIN_TOKEN" \\\n'
            '  -H "Content-Type: application/json" \\\n'
            f"  -d {shlex.quote(json.dumps(self.body()))}"
        )

    # --- what was refused -----------------------------------------------------------------------------------

    def problems(self, *fields: str) -> list[FieldProblem]:
        """What the API said of these fields (or parts of them), as long as they are as it refused them."""
        if self.refused is None:
            return []
        try:
            body = self.body()
        except ValueError:
            return []
        found = []
        for problem in self.refused.problem.errors:
            top = problem.field.split(".")[0]
            if any(problem.field == name or problem.field.startswith(f"{name}.") for name in fields) and (
                body.get(top) == self.refused.body.get(top)
            ):
                found.append(problem)
        return found

    def first_step_refused(self) -> str | None:
        """The step to go back to; None when no field is to blame."""
        if self.refused is None or not self.refused.problem.errors:
            return None
        steps = [STEP_OF.get(item.field.split(".")[0], "configuration") for item in self.refused.problem.errors]
        return next(step for step in ("model", "configuration", "instance") if step in steps)

    @classmethod
    def again(cls, requested: dict[str, Any]) -> Draft:
        """A draft of what an earlier launch asked for."""
        fallback = requested.get("fallback") or {}
        deadlines = requested.get("deadlines") or {}
        limit = requested.get("max_hourly_cost")
        return cls(
            model_name=requested.get("model_name"),
            provider=requested.get("provider"),
            region=requested.get("region"),
            zone=requested.get("zone"),
            instance_type=requested.get("instance_type"),
            spot=requested.get("market", "on_demand") != "on_demand",
            other_regions=bool(fallback.get("regions")),
            other_clouds=bool(fallback.get("clouds")),
            then_on_demand=bool(fallback.get("on_demand")),
            max_hourly_cost=None if limit is None else Decimal(str(limit)),
            provision_minutes=deadlines.get("provision_seconds", _DEADLINES.provision_seconds) / 60,
            registration_minutes=deadlines.get("registration_seconds", _DEADLINES.registration_seconds) / 60,
            engine=requested.get("engine"),
            engine_args=shlex.join(requested.get("engine_args") or []),
        )


@dataclass(frozen=True)
class Refused:
    """A request that the API refused, and why."""

    body: dict[str, Any]
    problem: Problem


def _wrapped(words: Sequence[str]) -> str:
    """A command line with one option a line."""
    lines = [" ".join(shlex.quote(word) for word in words[:3])]
    for word in words[3:]:
        if word.startswith("--"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n  ".join(lines)


# --- what is on sale ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InstanceChoice:
    """One instance type of one cloud, over all the places in question."""

    cloud: str
    instance_type: str
    gpu: str | None
    gpu_count: int
    gpu_memory_gb: float  # of the whole machine
    vcpus: int
    memory_gb: float
    spot: OfferView | None  # the cheapest of that market
    on_demand: OfferView | None
    regions: int
    sandbox: bool
    why_not: str | None

    def price(self, draft: Draft) -> OfferView | None:
        """What would be bought first."""
        if not draft.spot:
            return self.on_demand
        return self.spot or (self.on_demand if draft.then_on_demand else None)


def cheapest(offers: Iterable[OfferView]) -> OfferView | None:
    """The cheapest of these."""
    return min(offers, key=lambda item: (item.hourly_price, item.cloud, item.region), default=None)


def at_home(draft: Draft, offers: Iterable[OfferView]) -> list[OfferView]:
    """Offers at the place that was asked for first."""
    return [
        item
        for item in offers
        if (draft.provider in (None, item.cloud))
        and (draft.region in (None, item.region))
        and (draft.zone in (None, item.zone))
    ]


def choices(draft: Draft, offers: Iterable[OfferView]) -> list[InstanceChoice]:
    """Instance types at the place asked for: those that can be launched first, cheapest first."""
    groups: dict[tuple[str, str], list[OfferView]] = {}
    for item in at_home(draft, offers):
        groups.setdefault((item.cloud, item.instance_type), []).append(item)
    found = []
    for (cloud, name), group in groups.items():
        one = group[0]
        choice = InstanceChoice(
            cloud=cloud,
            instance_type=name,
            gpu=one.gpu,
            gpu_count=one.gpu_count,
            gpu_memory_gb=one.gpu_memory_gb * one.gpu_count,
            vcpus=one.vcpus,
            memory_gb=one.memory_gb,
            spot=cheapest(item for item in group if item.market is Market.SPOT),
            on_demand=cheapest(item for item in group if item.market is Market.ON_DEMAND),
            regions=len({item.region for item in group}),
            sandbox=one.sandbox,
            why_not=next((item.why_not for item in group if item.fits is False), None),
        )
        found.append(_judged(draft, choice))
    return sorted(found, key=lambda item: (item.why_not is not None, _amount(item.price(draft)), item.instance_type))


def _judged(draft: Draft, choice: InstanceChoice) -> InstanceChoice:
    """With the person's own limits as reasons."""
    if choice.why_not is not None:
        return choice
    first = choice.price(draft)
    why = None
    if first is None:
        why = "is not sold as spot here" if draft.spot else "is not sold on-demand here"
    elif draft.max_hourly_cost is not None and first.hourly_price > draft.max_hourly_cost:
        why = f"costs ${first.hourly_price.normalize():f}/h, over your limit of ${draft.max_hourly_cost:f}/h"
    return choice if why is None else InstanceChoice(**{**choice.__dict__, "why_not": why})


def _amount(offer: OfferView | None) -> Decimal:
    return offer.hourly_price if offer is not None else Decimal("Infinity")


def saving(spot: OfferView, offers: Iterable[OfferView]) -> Decimal | None:
    """What spot saves against the same type on-demand in the same region, as a fraction."""
    same = cheapest(
        item
        for item in offers
        if (item.cloud, item.region, item.instance_type) == (spot.cloud, spot.region, spot.instance_type)
        and item.market is Market.ON_DEMAND
    )
    return None if same is None or not same.hourly_price else 1 - spot.hourly_price / same.hourly_price
