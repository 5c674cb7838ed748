"""`refresh_catalog` on a real database, with clouds that a test scripts."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from activities.sweep import refresh_catalog
from skyfleet.db.repositories import CatalogRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import utcnow
from skyfleet.domain.errors import CloudUnreachable
from skyfleet.domain.offers import CloudAccess, Offer
from skyfleet.domain.states import Market


def sold(region: str, price: str = "1.006", **changes: Any) -> Offer:
    """An offer of the scripted cloud."""
    usual = {"backend": "scripted", "cloud": "aws", "instance_type": "g5.xlarge", "market": Market.ON_DEMAND}
    return Offer(**{**usual, "region": region, "hourly_price": Decimal(price), **changes})


class ScriptedCloud:
    """Says what it is told to say; the rest of `Cloud` is not asked for here."""

    backend = "scripted"
    engines: tuple[str, ...] = ("vllm",)

    def __init__(self, *offers: Offer) -> None:
        self.sells = list(offers)
        self.knows = [CloudAccess(cloud="aws", enabled=True), CloudAccess(cloud="gcp", enabled=False, reason="no key")]
        self.checks = 0
        self.checkable = True

    async def offers(self) -> list[Offer]:
        return list(self.sells)

    async def access(self) -> list[CloudAccess]:
        self.checks += 1
        if not self.checkable:
            raise CloudUnreachable("away")
        return self.knows


async def refreshed(database: Database, cloud: ScriptedCloud, **how: Any) -> int:
    """One refresh with that cloud alone."""
    return await refresh_catalog(database, {"scripted": cloud}, **how)  # type: ignore[dict-item]


async def keys(database: Database) -> set[str]:
    """What the catalog holds."""
    async with database.transaction() as session:
        return {offer.key for offer in await CatalogRepository(session).offers()}


async def written_by(database: Database) -> set[int]:
    """The transactions that wrote the offers."""
    async with database.transaction() as session:
        return set((await session.execute(text("SELECT xmin::text::bigint FROM offers"))).scalars())


async def access(database: Database) -> dict[str, tuple[bool, str]]:
    """Where the backend may buy, and why not."""
    async with database.transaction() as session:
        return {row.cloud: (row.enabled, row.reason) for row in await CatalogRepository(session).access()}


async def test_what_did_not_change_is_not_written_again(database: Database) -> None:
    cloud = ScriptedCloud(sold("us-east-1"), sold("us-west-2"))
    assert await refreshed(database, cloud) == 2
    first = await written_by(database)
    cloud.sells.reverse()
    await refreshed(database, cloud)
    assert await written_by(database) == first
    cloud.sells = [sold("us-east-1", "1.1"), sold("eu-west-1")]
    assert await refreshed(database, cloud) == 2
    assert await keys(database) == {offer.key for offer in cloud.sells}
    assert first.isdisjoint(await written_by(database))


async def test_readers_can_tell_that_the_catalog_changed(database: Database) -> None:
    async def version() -> tuple[str, ...]:
        async with database.transaction() as session:
            return await CatalogRepository(session).fingerprint()

    cloud = ScriptedCloud(sold("us-east-1"))
    await refreshed(database, cloud)
    before = await version()
    await refreshed(database, cloud)
    assert await version() == before
    cloud.sells = [sold("us-east-1", "1.007")]
    await refreshed(database, cloud)
    assert await version() != before


async def test_refreshes_at_once_do_not_collide(database: Database) -> None:
    clouds = [ScriptedCloud(*(sold(f"region-{number}", f"{price}") for number in range(50))) for price in (1, 2, 3)]
    await asyncio.gather(*(refreshed(database, cloud) for cloud in clouds))
    assert len(await keys(database)) == 50
    assert len(await written_by(database)) == 1


async def test_more_offers_than_go_into_one_statement(database: Database) -> None:
    cloud = ScriptedCloud(*(sold(f"region-{number}") for number in range(2_001)))
    assert await refreshed(database, cloud) == 2_001
    assert await keys(database) == {offer.key for offer in cloud.sells}


async def test_a_backend_that_sells_nothing_is_no_sandbox(database: Database) -> None:
    await refreshed(database, ScriptedCloud())
    async with database.transaction() as session:
        (backend,) = await CatalogRepository(session).backends()
    assert not backend.sandbox


async def test_access_is_checked_now_and_then_or_when_asked(database: Database) -> None:
    cloud = ScriptedCloud(sold("us-east-1"))
    await refreshed(database, cloud)
    await refreshed(database, cloud)
    assert cloud.checks == 1
    assert await access(database) == {"aws": (True, ""), "gcp": (False, "no key")}

    cloud.knows = [CloudAccess(cloud="gcp", enabled=True)]
    await refreshed(database, cloud, recheck=True)
    assert await access(database) == {"gcp": (True, "")}

    async with database.transaction() as session:
        await session.execute(
            text("UPDATE cloud_access SET checked_at = :then"), {"then": utcnow() - timedelta(minutes=11)}
        )
    await refreshed(database, cloud)
    assert cloud.checks == 3


async def test_a_check_without_an_answer_changes_nothing(database: Database) -> None:
    cloud = ScriptedCloud(sold("us-east-1"))
    await refreshed(database, cloud)
    cloud.checkable = False
    cloud.sells.append(sold("us-west-2"))
    assert await refreshed(database, cloud, recheck=True) == 2
    assert await access(database) == {"aws": (True, ""), "gcp": (False, "no key")}


async def test_a_backend_that_is_not_configured_any_more_is_forgotten(database: Database) -> None:
    await refreshed(database, ScriptedCloud(sold("us-east-1")))
    assert await refresh_catalog(database, {}) == 0
    assert await keys(database) == set()
    assert await access(database) == {}
