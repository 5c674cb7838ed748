"""Launches, their attempts and their events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, DateTime, Integer, String, bindparam, case, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col

from skyfleet.db.repositories.base import Repository
from skyfleet.db.tables import AttemptRow, LaunchEventRow, LaunchRow, ModelRow, utcnow
from skyfleet.domain.launches import LaunchSpec, status_of
from skyfleet.domain.messages import AttemptRef
from skyfleet.domain.offers import CloudInstance, Offer
from skyfleet.domain.states import AttemptState, LaunchStage, LaunchStatus


@dataclass(frozen=True, slots=True)
class NewLaunch:
    """An intent, to be written with the first event and the audit row of its launch."""

    id: str
    tenant: str
    principal: str
    idempotency_key: str | None
    request_hash: str
    spec: dict[str, Any]  # skyfleet.domain.launches.LaunchSpec
    model_name: str
    deployment: str | None
    engine: str | None
    sandbox: bool
    audit_detail: dict[str, Any]
    remote: str | None
    created_at: datetime = field(default_factory=utcnow)


# One statement, whose text does not depend on how many launches it writes, so that it is planned once; and no row
# objects, whose making would cost more than all else in accepting a launch.
_ADD_ALL = text("""
    WITH incoming AS (
        SELECT * FROM jsonb_to_recordset(CAST(:launches AS jsonb)) AS launch (
            id text, tenant text, principal text, idempotency_key text, request_hash text, spec jsonb, model_name text,
            deployment text, engine text, sandbox boolean, audit_detail jsonb, remote text, created_at timestamptz
        )
    ), written AS (
        INSERT INTO launches (
            id, tenant, principal, idempotency_key, request_hash, spec, model_name, deployment, engine, sandbox,
            created_at, updated_at, stage, status, reached, attempt_count, last_event_seq
        )
        SELECT id, tenant, principal, idempotency_key, request_hash, spec, model_name, deployment, engine, sandbox,
               created_at, created_at, :stage, :status, '[]'::jsonb, 0, 1
        FROM incoming
        ON CONFLICT ON CONSTRAINT uq_launches_idempotency DO NOTHING
        RETURNING id
    ), first_events AS (
        INSERT INTO launch_events (launch_id, seq, at, kind, stage, message, data, dedupe)
        SELECT id, 1, created_at, 'stage', :stage, 'accepted: ' || model_name || ', asked for by ' || principal,
               '{}'::jsonb, 'queued'
        FROM incoming JOIN written USING (id)
    ), audited AS (
        INSERT INTO audit (at, principal, action, subject, outcome, detail, remote)
        SELECT created_at, principal, 'launch.create', id, 'accepted', audit_detail, remote
        FROM incoming JOIN written USING (id)
    )
    SELECT id FROM written
""")


# One statement: this is written many times a launch. Two that write the same `dedupe` at once meet at the constraint.
_RECORD = text("""
    WITH moved AS (
        UPDATE launches SET
            last_event_seq = last_event_seq + 1,
            updated_at = :now,
            stage = CASE WHEN reached ?| :unless THEN stage ELSE coalesce(:stage, stage) END,
            status = CASE WHEN reached ?| :unless THEN status ELSE coalesce(:status, status) END,
            reached = CASE
                WHEN :stage IS NULL OR reached ? :stage THEN reached
                ELSE reached || to_jsonb(:stage)
            END,
            ended_at = coalesce(:ended_at, ended_at)
        WHERE id = :id
          AND NOT EXISTS (SELECT FROM launch_events WHERE launch_id = :id AND dedupe = :dedupe)
          -- A step that outlived the launch which cancelled it does not bring it back.
          AND (:stage IS NULL OR ended_at IS NULL)
        RETURNING last_event_seq, stage
    )
    INSERT INTO launch_events (launch_id, seq, at, kind, stage, attempt, message, data, dedupe)
    SELECT :id, last_event_seq, :at, :kind, stage, :attempt, :message, CAST(:data AS jsonb), :dedupe FROM moved
    ON CONFLICT ON CONSTRAINT uq_launch_events_dedupe DO NOTHING
    RETURNING seq
""").bindparams(
    bindparam("id", type_=String),
    bindparam("now", type_=DateTime(timezone=True)),
    bindparam("at", type_=DateTime(timezone=True)),
    bindparam("ended_at", type_=DateTime(timezone=True)),
    bindparam("kind", type_=String),
    bindparam("stage", type_=String),
    bindparam("status", type_=String),
    bindparam("unless", type_=ARRAY(String)),
    bindparam("attempt", type_=Integer),
    bindparam("message", type_=String),
    bindparam("data", type_=String),
    bindparam("dedupe", type_=String),
)


_CHOOSE = text("""
    UPDATE launches SET
        engine = :engine, attempt_count = :number, provider = :cloud, region = :region, zone = :zone,
        instance_type = :instance_type, market = :market, hourly_price = :price, sandbox = :sandbox,
        cluster_name = :cluster_name, node_id = :node_id,
        reached = coalesce(
            (SELECT jsonb_agg(before.name) FROM jsonb_array_elements_text(reached) AS before (name)
             WHERE before.name IN ('QUEUED', 'VALIDATING', 'PLANNING')),
            '[]'::jsonb
        )
    WHERE id = :id AND ended_at IS NULL
    RETURNING id
""")


class LaunchRepository(Repository):
    """Launches and their events."""

    async def get(self, launch_id: str, *, lock: bool = False) -> LaunchRow | None:
        """The launch; with `lock`, held against other writers until the transaction ends."""
        return await self.session.get(LaunchRow, launch_id, with_for_update=lock or None)

    async def spec(self, launch_id: str) -> LaunchSpec | None:
        """What was asked for; it never changes."""
        statement = select(col(LaunchRow.spec)).where(col(LaunchRow.id) == launch_id)
        found = (await self.session.execute(statement)).scalar_one_or_none()
        return LaunchSpec.model_validate(found) if found is not None else None

    async def runs(self, launch_id: str) -> tuple[str, str | None]:
        """The engine that was settled when the current attempt was opened, and where the model's weights are."""
        statement = (
            select(col(LaunchRow.engine), col(ModelRow.source))
            .outerjoin(ModelRow, col(ModelRow.id) == col(LaunchRow.model_name))
            .where(col(LaunchRow.id) == launch_id)
        )
        engine, source = (await self.session.execute(statement)).one()
        assert engine is not None, f"{launch_id} has no engine: its backend names none"
        return engine, source

    async def choose(self, launch_id: str, offer: Offer, ref: AttemptRef, engine: str | None) -> bool:
        """An attempt begins: write where it goes, and forget what an earlier one reached. False if the launch ended."""
        values = {
            "id": launch_id,
            "engine": engine,
            "number": ref.number,
            "cloud": offer.cloud,
            "region": offer.region,
            "zone": offer.zone,
            "instance_type": offer.instance_type,
            "market": offer.market.value,
            "price": offer.hourly_price,
            "sandbox": offer.sandbox,
            "cluster_name": ref.cluster_name,
            "node_id": ref.node_id,
        }
        return (await self.session.execute(_CHOOSE, values)).first() is not None

    async def by_idempotency_key(self, principal: str, key: str) -> LaunchRow | None:
        """The launch that this principal asked for with this Idempotency-Key."""
        statement = select(LaunchRow).where(
            col(LaunchRow.principal) == principal, col(LaunchRow.idempotency_key) == key
        )
        return (await self.session.execute(statement)).scalar_one_or_none()

    async def add_all(self, launches: Sequence[NewLaunch]) -> set[str]:
        """Write intents, the first event of each, and its audit row, in one statement; the ids of those written.

        A launch whose principal used its Idempotency-Key before is not written.
        """
        rows = [
            {name: getattr(launch, name) for name in NewLaunch.__slots__}
            | {"created_at": launch.created_at.isoformat()}
            for launch in launches
        ]
        values = {
            "launches": json.dumps(rows),
            "stage": LaunchStage.QUEUED.value,
            "status": LaunchStatus.IN_PROGRESS.value,
        }
        return set((await self.session.execute(_ADD_ALL, values)).scalars())

    async def mark_replacement(self, launch_id: str, node_id: str) -> None:
        """The launch stands in for that node."""
        statement = update(LaunchRow).where(col(LaunchRow.id) == launch_id).values(replaces_node_id=node_id)
        await self.session.execute(statement.execution_options(synchronize_session=False))

    async def typical_seconds(self, provider: str | None, launches: int) -> tuple[float | None, int]:
        """Median seconds from request to READY of the last successful launches (on that provider), and how many."""
        took = func.extract("epoch", col(LaunchRow.ended_at) - col(LaunchRow.created_at))
        last = select(took.label("seconds")).where(col(LaunchRow.status) == LaunchStatus.COMPLETED.value)
        if provider is not None:
            last = last.where(col(LaunchRow.provider) == provider)
        recent = last.order_by(col(LaunchRow.created_at).desc()).limit(launches).subquery()
        statement = select(func.percentile_cont(0.5).within_group(recent.c.seconds), func.count()).select_from(recent)
        seconds, count = (await self.session.execute(statement)).one()
        return (None if seconds is None else float(seconds)), count

    async def record(
        self,
        launch_id: str,
        *,
        kind: str,
        message: str,
        stage: LaunchStage | None = None,
        unless_reached: Sequence[LaunchStage] = (),
        timed_out: bool = False,
        attempt: int | None = None,
        data: dict[str, Any] | None = None,
        dedupe: str | None = None,
        at: datetime | None = None,
    ) -> bool:
        """Append an event, and move the launch to `stage` if given (but not from one of `unless_reached`, or beyond).

        One statement, which locks the launch until the transaction ends. With `dedupe`, an event of that name is
        written once, and a repetition changes nothing (False); nor does a stage of a launch that ended. `timed_out`:
        a FAILED launch is `timeout`.
        """
        now = utcnow()
        values = {
            "id": launch_id,
            "now": now,
            "at": at or now,
            "kind": kind,
            "stage": stage.value if stage is not None else None,
            "status": status_of(stage, timed_out=timed_out).value if stage is not None else None,
            "ended_at": now if stage is not None and stage.terminal else None,
            "unless": [item.value for item in unless_reached],
            "attempt": attempt,
            "message": message,
            "data": json.dumps(data or {}),
            "dedupe": dedupe,
        }
        return (await self.session.execute(_RECORD, values)).first() is not None

    async def events(self, launch_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[LaunchEventRow]:
        """Events with a `seq` above `after`, in order."""
        statement = (
            select(LaunchEventRow)
            .where(col(LaunchEventRow.launch_id) == launch_id, col(LaunchEventRow.seq) > after)
            .order_by(col(LaunchEventRow.seq))
            .limit(limit)
        )
        return (await self.session.execute(statement)).scalars().all()

    async def timeline(self, launch_id: str) -> list[tuple[LaunchStage, datetime]]:
        """The stage after each event, and when that was, in order."""
        statement = (
            select(col(LaunchEventRow.stage), col(LaunchEventRow.at))
            .where(col(LaunchEventRow.launch_id) == launch_id)
            .order_by(col(LaunchEventRow.seq))
        )
        return [(LaunchStage(stage), at) for stage, at in await self.session.execute(statement)]

    async def page(
        self,
        *,
        statuses: Sequence[str] = (),
        model_name: str | None = None,
        provider: str | None = None,
        deployment: str | None = None,
        tenant: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> Sequence[LaunchRow]:
        """Newest first; `before` is the (created_at, id) of the last row of the page before."""
        statement = select(LaunchRow)
        if statuses:
            statement = statement.where(col(LaunchRow.status).in_(statuses))
        for column, value in (
            (LaunchRow.model_name, model_name),
            (LaunchRow.provider, provider),
            (LaunchRow.deployment, deployment),
            (LaunchRow.tenant, tenant),
        ):
            if value is not None:
                statement = statement.where(col(column) == value)
        if before is not None:
            statement = statement.where(tuple_(col(LaunchRow.created_at), col(LaunchRow.id)) < before)
        statement = statement.order_by(col(LaunchRow.created_at).desc(), col(LaunchRow.id).desc()).limit(limit)
        return (await self.session.execute(statement)).scalars().all()

    async def mark_started(self, launch_ids: Sequence[str]) -> None:
        """The workflows of these launches are known to have started."""
        statement = (
            update(LaunchRow)
            .where(col(LaunchRow.id).in_(launch_ids), col(LaunchRow.workflow_started_at).is_(None))
            .values(workflow_started_at=utcnow())
        )
        await self.session.execute(statement)

    async def lost_starts(self, older_than: datetime, limit: int = 500) -> Sequence[LaunchRow]:
        """Open launches whose workflow is not known to have started, oldest first."""
        statement = (
            select(LaunchRow)
            .where(
                col(LaunchRow.ended_at).is_(None),
                col(LaunchRow.workflow_started_at).is_(None),
                col(LaunchRow.created_at) < older_than,
            )
            .order_by(col(LaunchRow.created_at))
            .limit(limit)
        )
        return (await self.session.execute(statement)).scalars().all()

    async def undelivered_cancels(self, older_than: datetime, limit: int = 500) -> Sequence[LaunchRow]:
        """Open launches that were asked to end some time ago."""
        statement = (
            select(LaunchRow)
            .where(col(LaunchRow.ended_at).is_(None), col(LaunchRow.cancel_requested_at) < older_than)
            .order_by(col(LaunchRow.cancel_requested_at))
            .limit(limit)
        )
        return (await self.session.execute(statement)).scalars().all()


_BEGIN = text("""
    UPDATE launch_attempts SET
        provision_started_at = coalesce(provision_started_at, :now),
        token_hashes = token_hashes || to_jsonb(CAST(:token AS text))
    WHERE launch_id = :launch_id AND number = :number
    RETURNING provision_started_at
""").columns(provision_started_at=DateTime(timezone=True))


class AttemptRepository(Repository):
    """The attempts of launches."""

    async def get(self, launch_id: str, number: int, *, lock: bool = False) -> AttemptRow | None:
        """One attempt of a launch."""
        return await self.session.get(AttemptRow, (launch_id, number), with_for_update=lock or None)

    async def by_node_id(self, node_id: str, *, lock: bool = False) -> AttemptRow | None:
        """The attempt that would become, or became, this node."""
        statement = select(AttemptRow).where(col(AttemptRow.node_id) == node_id)
        if lock:
            statement = statement.with_for_update()
        return (await self.session.execute(statement)).scalar_one_or_none()

    async def launch_of_node(self, node_id: str) -> str | None:
        """Id of the launch whose attempt would become, or became, this node."""
        statement = select(col(AttemptRow.launch_id)).where(col(AttemptRow.node_id) == node_id)
        return (await self.session.execute(statement)).scalar_one_or_none()

    async def begin(self, launch_id: str, number: int, token_hash: str) -> datetime:
        """The cloud is about to be asked, with a token of this hash; when that was first."""
        values = {"launch_id": launch_id, "number": number, "now": utcnow(), "token": token_hash}
        first: datetime = (await self.session.execute(_BEGIN, values)).scalar_one()
        return first

    async def accepted(self, launch_id: str, number: int, instance: CloudInstance) -> None:
        """The cloud has the machine."""
        statement = (
            update(AttemptRow)
            .where(col(AttemptRow.launch_id) == launch_id, col(AttemptRow.number) == number)
            .values(
                state=case(
                    (col(AttemptRow.state) == AttemptState.OPEN.value, AttemptState.CREATED.value),
                    else_=col(AttemptRow.state),
                ),
                instance_id=instance.id,
                address=instance.address,
                # When it was first seen: SkyPilot moves its own time when a launch is taken up again.
                created_at=func.coalesce(col(AttemptRow.created_at), instance.created_at),
                running_at=func.coalesce(col(AttemptRow.running_at), instance.running_at),
            )
        )
        await self.session.execute(statement)

    async def succeeded(self, launch_id: str, number: int) -> None:
        """The attempt's node serves."""
        statement = (
            update(AttemptRow)
            .where(col(AttemptRow.launch_id) == launch_id, col(AttemptRow.number) == number)
            .values(state=AttemptState.SUCCEEDED.value)
        )
        await self.session.execute(statement)

    async def of_clusters(self, names: Sequence[str]) -> dict[str, AttemptRow]:
        """The attempts that these machines were asked for by, by the machine's name."""
        statement = select(AttemptRow).where(col(AttemptRow.cluster_name).in_(names))
        return {row.cluster_name: row for row in (await self.session.execute(statement)).scalars()}

    async def of_launch(self, launch_id: str) -> Sequence[AttemptRow]:
        """All attempts of a launch, in order."""
        statement = select(AttemptRow).where(col(AttemptRow.launch_id) == launch_id).order_by(col(AttemptRow.number))
        return (await self.session.execute(statement)).scalars().all()

    async def open_once(self, attempt: AttemptRow) -> bool:
        """Write the attempt row unless it is there; whether it was written."""
        values = attempt.model_dump(exclude_none=True)
        statement = insert(AttemptRow).values(**values).on_conflict_do_nothing(index_elements=["launch_id", "number"])
        result = await self.session.execute(statement.returning(col(AttemptRow.number)))
        return result.first() is not None
