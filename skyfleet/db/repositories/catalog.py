"""The catalog: models, offers, backends; and the capacity memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Text, all_, delete, func, inspect, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlmodel import col

from skyfleet.db.repositories.base import Repository
from skyfleet.db.tables import (
    AgentBundleRow,
    BackendRow,
    CloudAccessRow,
    ModelBucketRow,
    ModelRow,
    OfferRow,
    RefusalRow,
    utcnow,
)
from skyfleet.domain.offers import CloudAccess, Offer
from skyfleet.domain.planner import Refusal

#: Offers written in one statement, between which other tasks have their turn.
_CHUNK = 2_000


class ModelRepository(Repository):
    """Models that can be served."""

    async def get(self, model_id: str) -> ModelRow | None:
        """The model of that id."""
        return await self.session.get(ModelRow, model_id)

    async def all(self) -> Sequence[ModelRow]:
        """All models by id."""
        return (await self.session.execute(select(ModelRow).order_by(col(ModelRow.id)))).scalars().all()

    async def ids(self) -> set[str]:
        """The ids of all models."""
        return set((await self.session.execute(select(col(ModelRow.id)))).scalars())

    async def put(self, model: ModelRow) -> None:
        """Write the model, replacing one of the same id."""
        values = model.model_dump()
        changed = {name: value for name, value in values.items() if name not in ("id", "created_at")}
        statement = insert(ModelRow).values(**values)
        await self.session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changed))

    async def delete(self, model_id: str) -> bool:
        """Remove the model from the catalog; whether it was there. Launches of it stay."""
        statement = delete(ModelRow).where(col(ModelRow.id) == model_id).returning(col(ModelRow.id))
        return (await self.session.execute(statement)).first() is not None

    async def bucket_fingerprints(self) -> dict[str, str]:
        """Of the models that came from the bucket, by id."""
        statement = select(col(ModelRow.id), col(ModelRow.fingerprint)).where(col(ModelRow.origin) == "bucket")
        rows = (await self.session.execute(statement)).all()
        return {model_id: fingerprint for model_id, fingerprint in rows if fingerprint is not None}

    async def put_from_bucket(self, model: ModelRow) -> bool:
        """Write a model of the bucket; False, and nothing is written, where one of its id came from elsewhere."""
        values = model.model_dump()
        changed = {name: value for name, value in values.items() if name not in ("id", "created_at")}
        statement = (
            insert(ModelRow)
            .values(**values)
            .on_conflict_do_update(index_elements=["id"], set_=changed, where=col(ModelRow.origin) == "bucket")
            .returning(col(ModelRow.id))
        )
        return (await self.session.execute(statement)).first() is not None

    async def keep_from_bucket(self, model_ids: Collection[str]) -> list[str]:
        """Remove the bucket's models that are not among these; their ids."""
        statement = (
            delete(ModelRow)
            # One parameter, however many there are: a statement takes 32,767.
            .where(col(ModelRow.origin) == "bucket", col(ModelRow.id) != all_(literal(list(model_ids), ARRAY(Text))))
            .returning(col(ModelRow.id))
        )
        return sorted((await self.session.execute(statement)).scalars())


class ModelBucketRepository(Repository):
    """The model bucket, of which there is one at most, and how its last reading went."""

    async def get(self) -> ModelBucketRow | None:
        """The bucket; None when none is configured, or no worker said so yet."""
        return (await self.session.execute(select(ModelBucketRow))).scalars().first()

    async def configure(self, url: str | None) -> None:
        """Make it the bucket, or none; what is known of another is forgotten."""
        await self.session.execute(delete(ModelBucketRow).where(col(ModelBucketRow.url).is_distinct_from(url)))
        if url is not None:
            await self.session.execute(insert(ModelBucketRow).values(url=url, models=0).on_conflict_do_nothing())

    async def put(self, bucket: ModelBucketRow) -> None:
        """Write how a reading went, in place of all that was known."""
        await self.configure(bucket.url)
        values = bucket.model_dump()
        statement = insert(ModelBucketRow).values(**values)
        await self.session.execute(statement.on_conflict_do_update(index_elements=["url"], set_=values))


class CatalogRepository(Repository):
    """What the configured clouds sell."""

    async def offers(self) -> list[Offer]:
        """All offers."""
        # Rows, not entities, and out of the loop's way: there can be tens of thousands.
        columns = [column for column in inspect(OfferRow).columns if column.name != "key"]
        rows = (await self.session.execute(select(*columns))).mappings().all()
        return await asyncio.to_thread(lambda: [Offer.model_validate(row) for row in rows])

    async def backends(self) -> Sequence[BackendRow]:
        """The configured backends."""
        return (await self.session.execute(select(BackendRow).order_by(col(BackendRow.name)))).scalars().all()

    async def fingerprint(self) -> tuple[str, ...]:
        """Changes when models, offers or backends change (but not with each reading of an unchanged catalog)."""
        statement = text("""
            SELECT
              (SELECT count(*) || ':' || coalesce(sum(hashtextextended(m::text, 0)::numeric), 0) FROM models m),
              (SELECT count(*) || ':' || coalesce(sum(hashtextextended(
                 ROW(b.name, b.engines, b.sandbox, b.error, b.offers_digest)::text, 0)::numeric), 0) FROM backends b)
        """)
        return tuple((await self.session.execute(statement)).one())

    async def replace(self, backend: BackendRow, offers: Sequence[Offer]) -> None:
        """Make these all the offers of one backend; nothing is written but the backend if they are already."""
        # One writer at a time: two that delete and insert would meet in the middle.
        await self.session.execute(select(func.pg_advisory_xact_lock(_OFFERS_LOCK)))
        backend.offers_digest = await asyncio.to_thread(_digest, offers)
        digest = select(col(BackendRow.offers_digest)).where(col(BackendRow.name) == backend.name)
        if (await self.session.execute(digest)).scalar() != backend.offers_digest:
            await self.session.execute(delete(OfferRow).where(col(OfferRow.backend) == backend.name))
            for start in range(0, len(offers), _CHUNK):
                rows = [{"key": offer.key, **offer.model_dump()} for offer in offers[start : start + _CHUNK]]
                await self.session.execute(insert(OfferRow), rows)
        await self.put_backend(backend)

    async def put_backend(self, backend: BackendRow) -> None:
        """Write what is known of a backend."""
        values = backend.model_dump()
        statement = insert(BackendRow).values(**values).on_conflict_do_update(index_elements=["name"], set_=values)
        await self.session.execute(statement)

    async def keep_backends(self, names: Sequence[str]) -> None:
        """Forget backends, and their offers, that are no longer configured."""
        await self.session.execute(delete(OfferRow).where(col(OfferRow.backend).not_in(names)))
        await self.session.execute(delete(BackendRow).where(col(BackendRow.name).not_in(names)))
        await self.session.execute(delete(CloudAccessRow).where(col(CloudAccessRow.backend).not_in(names)))

    async def access(self) -> Sequence[CloudAccessRow]:
        """Where each backend may buy, by cloud."""
        statement = select(CloudAccessRow).order_by(col(CloudAccessRow.cloud), col(CloudAccessRow.backend))
        return (await self.session.execute(statement)).scalars().all()

    async def replace_access(self, backend: str, access: Sequence[CloudAccess]) -> None:
        """Write down what a backend has just found out about its clouds, in place of all that it found before."""
        await self.session.execute(select(func.pg_advisory_xact_lock(_OFFERS_LOCK)))
        await self.session.execute(delete(CloudAccessRow).where(col(CloudAccessRow.backend) == backend))
        if access:
            # The database's time: it is compared with that of a request to check.
            now = await self.now()
            rows = [{"backend": backend, "checked_at": now, **one.model_dump()} for one in access]
            await self.session.execute(insert(CloudAccessRow), rows)


#: Key of the advisory lock that the writers of offers take: any number, the same for all.
_OFFERS_LOCK = 0x0FFE25


def _digest(offers: Sequence[Offer]) -> str:
    """The same for the same offers, in whatever order."""
    lines = sorted(
        f"{offer.key} {offer.hourly_price:f} {offer.gpu_count} {offer.gpu} {offer.gpu_memory_gb:g} {offer.vcpus} "
        f"{offer.memory_gb:g} {offer.sandbox}"
        for offer in offers
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class AgentBundleRepository(Repository):
    """Published versions of the node agent."""

    async def publish(self, version: str, sha256: str, content: bytes) -> None:
        """Make a version available; the same version again changes nothing."""
        values = {"version": version, "sha256": sha256, "content": content, "published_at": utcnow()}
        await self.session.execute(insert(AgentBundleRow).values(**values).on_conflict_do_nothing())

    async def get(self, version: str) -> AgentBundleRow | None:
        """The version that a launch named."""
        return await self.session.get(AgentBundleRow, version)

    async def versions(self) -> Sequence[str]:
        """All published versions, newest first."""
        statement = select(col(AgentBundleRow.version)).order_by(col(AgentBundleRow.published_at).desc())
        return (await self.session.execute(statement)).scalars().all()


class RefusalRepository(Repository):
    """The capacity memory."""

    async def live(self, now: datetime | None = None) -> list[Refusal]:
        """Refusals that are still remembered, oldest first."""
        statement = select(RefusalRow).where(col(RefusalRow.until) > (now or utcnow())).order_by(col(RefusalRow.at))
        rows = (await self.session.execute(statement)).scalars().all()
        return [Refusal.model_validate(row.model_dump(exclude={"place", "launch_id"})) for row in rows]

    async def remember(self, refusal: Refusal, launch_id: str) -> None:
        """Write a refusal; a later one of the same place and kind replaces it."""
        assert refusal.until is not None
        place = "/".join(
            (refusal.cloud, refusal.region, refusal.zone or "*", refusal.instance_type, refusal.market, refusal.kind)
        )
        values = {"place": place, "launch_id": launch_id, **refusal.model_dump()}
        statement = insert(RefusalRow).values(**values).on_conflict_do_update(index_elements=["place"], set_=values)
        await self.session.execute(statement)

    async def forget(self, cloud: str, region: str, zone: str | None, instance_type: str, market: str) -> None:
        """A machine was just had there: what was remembered against exactly this place is out of date."""
        await self.session.execute(
            delete(RefusalRow).where(
                col(RefusalRow.cloud) == cloud,
                col(RefusalRow.region) == region,
                col(RefusalRow.zone).is_not_distinct_from(zone),
                col(RefusalRow.instance_type) == instance_type,
                col(RefusalRow.market) == market,
            )
        )
