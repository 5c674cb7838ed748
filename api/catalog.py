"""The catalog in memory: models, offers and backends, as the database has them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any, Final

from skyfleet.db.repositories import CatalogRepository, ModelRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import BackendRow, ModelRow
from skyfleet.domain.offers import Offer
from skyfleet.domain.states import Market
from skyfleet.domain.views import ProviderRegion

_log = logging.getLogger("skyfleet.api")

#: Older than this, the next question has it read anew in the background.
_FRESH_SECONDS: Final = 3.0
#: Older than this, the next question waits until it is read anew.
_STALE_SECONDS: Final = 30.0
#: A question that misses something has the catalog read again, but no more often than this.
_MISS_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Snapshot:
    """The catalog at one moment. `verdicts` remembers what requests of the same shape were answered from it."""

    models: dict[str, ModelRow]
    offers: list[Offer]
    backends: dict[str, BackendRow]
    sandbox: bool
    version: tuple[Any, ...]
    verdicts: dict[Any, Any] = field(default_factory=dict)

    @property
    def loaded(self) -> bool:
        """Whether any cloud's offers are there."""
        return bool(self.offers)

    def prepare(self) -> Snapshot:
        """Work out what follows from the offers, which takes a while when there are tens of thousands."""
        _ = self.by_price, self.sales, self._on_demand
        return self

    @cached_property
    def by_price(self) -> list[Offer]:
        """The offers, cheapest first."""
        return sorted(self.offers, key=price_order)

    @cached_property
    def sales(self) -> dict[tuple[str, str], Sales]:
        """What is sold, by backend and cloud."""
        sold: dict[tuple[str, str], dict[str, list[Offer]]] = {}
        for offer in self.by_price:
            sold.setdefault((offer.backend, offer.cloud), {}).setdefault(offer.region, []).append(offer)
        return {place: _sales(regions) for place, regions in sold.items()}

    def spot_saving(self, offer: Offer) -> float | None:
        """See `OfferView.spot_saving`."""
        if offer.market is not Market.SPOT:
            return None
        usual = self._on_demand.get(_machine(offer))
        return None if not usual else round(float(1 - offer.hourly_price / usual), 4)

    @cached_property
    def _on_demand(self) -> dict[tuple[str | None, ...], Decimal]:
        return {_machine(offer): offer.hourly_price for offer in self.offers if offer.market is Market.ON_DEMAND}


@dataclass(frozen=True, slots=True)
class Sales:
    """What a cloud sells: how many offers, the cheapest's price, the GPUs, and the regions, cheapest first."""

    offers: int
    cheapest_price: Decimal
    gpus: list[str]
    regions: list[ProviderRegion]


def _sales(regions: dict[str, list[Offer]]) -> Sales:
    """Of offers by region, in each of which the cheapest comes first."""
    found = [
        ProviderRegion(region=region, offers=len(offers), cheapest_price=offers[0].hourly_price)
        for region, offers in regions.items()
    ]
    return Sales(
        offers=sum(region.offers for region in found),
        cheapest_price=min(region.cheapest_price for region in found),
        gpus=names({offer.gpu for offers in regions.values() for offer in offers}),
        regions=sorted(found, key=lambda region: (region.cheapest_price, region.region)),
    )


def price_order(offer: Offer) -> tuple[Decimal, str]:
    """Cheapest first, and always in the same order."""
    return offer.hourly_price, offer.key


def _machine(offer: Offer) -> tuple[str | None, ...]:
    return offer.cloud, offer.region, offer.zone, offer.instance_type


def names(values: Sequence[str | None] | set[str | None] | set[str]) -> list[str]:
    """Distinct names in order."""
    return sorted({value for value in values if value is not None})


class Catalog:
    """Reads the catalog when asked and at most every few seconds; a reading is shared by all who wait for it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._snapshot: Snapshot | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[Snapshot] | None = None

    async def snapshot(self) -> Snapshot:
        """The catalog, at most `_STALE_SECONDS` old."""
        age = time.monotonic() - self._read_at
        if self._snapshot is None or age > _STALE_SECONDS or (age > _FRESH_SECONDS and not self._snapshot.loaded):
            return await self._read()
        if age > _FRESH_SECONDS:
            self._start_reading()
        return self._snapshot

    async def refreshed(self) -> Snapshot:
        """The catalog as it is now, for a question that the remembered one could not answer."""
        if self._snapshot is not None and time.monotonic() - self._read_at < _MISS_SECONDS:
            return self._snapshot
        return await self._read()

    def forget(self) -> None:
        """It was changed by this process: read it anew for the next question."""
        self._read_at = float("-inf")
        self._reading = None  # what is being read may be from before the change

    async def _read(self) -> Snapshot:
        # A reader that goes away must not take the reading from the others.
        return await asyncio.shield(self._start_reading())

    def _start_reading(self) -> asyncio.Task[Snapshot]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_once())
            self._reading.add_done_callback(_consume)
        return self._reading

    async def _read_once(self) -> Snapshot:
        started = time.monotonic()
        async with self._database.transaction() as session:
            catalog = CatalogRepository(session)
            version = await catalog.fingerprint()
            if self._snapshot is None or self._snapshot.version != version:
                models = {row.id: row for row in await ModelRepository(session).all()}
                offers = await catalog.offers()
                backends = {row.name: row for row in await catalog.backends()}
                sandbox = bool(backends) and all(row.sandbox for row in backends.values())
                snapshot = Snapshot(models, offers, backends, sandbox, version)
                self._snapshot = await asyncio.to_thread(snapshot.prepare)
        self._read_at = started
        return self._snapshot


def _consume(task: asyncio.Task[Snapshot]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("the catalog could not be read: %s", error)
