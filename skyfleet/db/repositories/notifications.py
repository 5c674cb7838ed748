"""Notifications: the outbox, the channels, and what became of each message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col

from skyfleet.db.repositories.base import Repository
from skyfleet.db.tables import NotificationChannelRow, NotificationDeliveryRow, NotificationRow, utcnow
from skyfleet.domain.notifications import SUMMARY_TITLES, DeliveryState, Notification

_BODY_CHARS = 8_000

_Delivery = NotificationDeliveryRow
_PENDING = col(_Delivery.state) == DeliveryState.PENDING.value
_HELD = and_(_PENDING, col(_Delivery.released_at).is_(None), col(_Delivery.held_at).is_not(None))
_FRESH = and_(_PENDING, col(_Delivery.released_at).is_(None), col(_Delivery.held_at).is_(None))


class NotificationRepository(Repository):
    """What happened that people are to be told."""

    async def add(self, notification: Notification) -> bool:
        """Write it, in the transaction of the fact that it tells; False if that fact was told before.

        Who hears of it is settled when notifications are delivered.
        """
        return await self._insert(notification, routed_at=None) is not None

    async def add_summary(self, summary: Notification, at: datetime) -> int:
        """Write a summary, which goes to the one channel that its messages were held back for; its id."""
        written = await self._insert(summary, routed_at=at)
        assert written is not None  # its key is that of deliveries which are part of one summary
        return written

    async def _insert(self, notification: Notification, *, routed_at: datetime | None) -> int | None:
        values = notification.model_dump(mode="json")
        for name in ("title", "body"):
            values[name] = values[name].replace("\0", "")[:_BODY_CHARS]
        statement = (
            insert(NotificationRow)
            .values(**values, severity=notification.kind.severity.value, at=utcnow(), routed_at=routed_at)
            .on_conflict_do_nothing(index_elements=["dedupe"])
            .returning(col(NotificationRow.id))
        )
        return (await self.session.execute(statement)).scalar_one_or_none()

    async def unrouted(self, limit: int) -> Sequence[NotificationRow]:
        """Those of which it is not settled who hears of them, oldest first; held until the transaction ends."""
        statement = (
            select(NotificationRow)
            .where(col(NotificationRow.routed_at).is_(None))
            .order_by(col(NotificationRow.id))
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return (await self.session.execute(statement)).scalars().all()

    async def page(
        self,
        *,
        kind: str | None = None,
        subject: str | None = None,
        tenant: str | None = None,
        before_id: int | None = None,
        limit: int = 100,
    ) -> Sequence[NotificationRow]:
        """Newest first; `before_id` is the id of the last row of the page before. With `tenant`, that one's alone."""
        statement = select(NotificationRow)
        for column, value in (
            (NotificationRow.kind, kind),
            (NotificationRow.subject, subject),
            (NotificationRow.tenant, tenant),
        ):
            if value is not None:
                statement = statement.where(col(column) == value)
        if before_id is not None:
            statement = statement.where(col(NotificationRow.id) < before_id)
        statement = statement.order_by(col(NotificationRow.id).desc()).limit(limit)
        return (await self.session.execute(statement)).scalars().all()


class ChannelRepository(Repository):
    """Places where people are told."""

    async def all(self, *, lock: bool = False) -> Sequence[NotificationChannelRow]:
        """All channels by name. With `lock` no other delivery, and no change of a channel, runs meanwhile."""
        statement = select(NotificationChannelRow).order_by(col(NotificationChannelRow.name))
        if lock:
            statement = statement.with_for_update()
        return (await self.session.execute(statement)).scalars().all()

    async def find(self, name: str, *, lock: bool = False) -> NotificationChannelRow | None:
        """The channel of that id, else of that name."""
        row = await self.session.get(NotificationChannelRow, name, with_for_update=lock or None)
        if row is None:
            statement = select(NotificationChannelRow).where(col(NotificationChannelRow.name) == name)
            if lock:
                statement = statement.with_for_update()
            row = (await self.session.execute(statement)).scalar_one_or_none()
        return row

    def add(self, channel: NotificationChannelRow) -> None:
        """A new channel."""
        self.session.add(channel)

    async def remove(self, channel: NotificationChannelRow) -> None:
        """Take it away. What was sent stays in the history, what was not sent yet will not be."""
        await DeliveryRepository(self.session).suppress(channel.id, "the channel was removed")
        await self.session.delete(channel)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Messages of one kind that the throttle has not let through to a channel: held back before, and come since."""

    kind: str
    held: int
    fresh: int


@dataclass(frozen=True, slots=True)
class HeldBack:
    """What a summary must know of the messages that it stands for."""

    count: int
    titles: list[str]
    since: datetime
    until: datetime
    first_id: int
    tenant: str | None  # theirs, if all have the same


@dataclass(frozen=True, slots=True)
class Due:
    """A message to be sent now. `url` is a secret."""

    id: int
    channel_id: str
    url: str = field(repr=False)
    attempts: int  # this one included
    created_at: datetime
    notification_id: int
    kind: str
    severity: str
    title: str
    body: str


class DeliveryRepository(Repository):
    """Notifications on their way to channels."""

    async def open(self, notification: NotificationRow, channels: Iterable[NotificationChannelRow]) -> None:
        """The channels that want it; each once."""
        values = [
            {
                "notification_id": notification.id,
                "channel_id": channel.id,
                "channel_name": channel.name,
                "kind": notification.kind,
                "state": DeliveryState.PENDING.value,
                "attempts": 0,
                "created_at": utcnow(),
            }
            for channel in channels
        ]
        if values:
            await self.session.execute(
                insert(_Delivery).values(values).on_conflict_do_nothing(constraint="uq_notification_deliveries_once")
            )

    async def open_summary(self, summary_id: int, channel: NotificationChannelRow, kind: str, at: datetime) -> None:
        """Let a summary through to its channel, at once."""
        self.session.add(
            NotificationDeliveryRow(
                notification_id=summary_id,
                channel_id=channel.id,
                channel_name=channel.name,
                kind=kind,
                state=DeliveryState.PENDING.value,
                released_at=at,
                next_attempt_at=at,
                created_at=at,
            )
        )
        await self.session.flush()

    async def suppress(self, channel_id: str, reason: str) -> None:
        """End what is pending for a channel, unsent."""
        await self.session.execute(
            update(_Delivery)
            .where(_PENDING, col(_Delivery.channel_id) == channel_id)
            .values(state=DeliveryState.SUPPRESSED.value, error=reason, ended_at=utcnow())
        )

    async def waiting(self, channel_id: str) -> list[Waiting]:
        """What the throttle has to decide on, by kind."""
        statement = (
            select(col(_Delivery.kind), func.count().filter(_HELD), func.count().filter(_FRESH))
            .where(_PENDING, col(_Delivery.channel_id) == channel_id, col(_Delivery.released_at).is_(None))
            .group_by(col(_Delivery.kind))
            .order_by(col(_Delivery.kind))
        )
        return [Waiting(*row) for row in (await self.session.execute(statement)).tuples()]

    async def used(self, channel_id: str, kind: str, since: datetime) -> int:
        """How many of a kind were sent to a channel after `since`, or are let through and not ended."""
        statement = select(func.count()).where(
            col(_Delivery.channel_id) == channel_id,
            col(_Delivery.kind) == kind,
            or_(
                and_(col(_Delivery.state) == DeliveryState.SENT.value, col(_Delivery.ended_at) > since),
                and_(_PENDING, col(_Delivery.released_at).is_not(None)),
            ),
        )
        return (await self.session.execute(statement)).scalar_one()

    async def release(self, channel_id: str, kind: str, count: int, at: datetime, *, held: bool = False) -> None:
        """Let the oldest ones through: those that came since, or with `held` those that were held back."""
        oldest = (
            select(col(_Delivery.id))
            .where(_HELD if held else _FRESH, col(_Delivery.channel_id) == channel_id, col(_Delivery.kind) == kind)
            .order_by(col(_Delivery.id))
            .limit(count)
        )
        await self.session.execute(
            update(_Delivery).where(col(_Delivery.id).in_(oldest)).values(released_at=at, next_attempt_at=at)
        )

    async def hold(self, channel_id: str, kind: str, at: datetime) -> None:
        """Hold back what has come and was not let through."""
        await self.session.execute(
            update(_Delivery)
            .where(_FRESH, col(_Delivery.channel_id) == channel_id, col(_Delivery.kind) == kind)
            .values(held_at=at)
        )

    async def held_back(self, channel_id: str, kind: str) -> HeldBack:
        """What is held back; there is some."""
        mine = and_(_HELD, col(_Delivery.channel_id) == channel_id, col(_Delivery.kind) == kind)
        joined = col(NotificationRow.id) == col(_Delivery.notification_id)
        facts = select(
            func.count(),
            func.min(col(NotificationRow.at)),
            func.max(col(NotificationRow.at)),
            func.min(col(_Delivery.id)),
            func.min(col(NotificationRow.tenant)),
            func.max(col(NotificationRow.tenant)),
            func.count(col(NotificationRow.tenant)),
        )
        found = (await self.session.execute(facts.join_from(_Delivery, NotificationRow, joined).where(mine))).one()
        count, since, until, first_id, tenant, other, of_tenants = found
        assert first_id is not None
        titles = (
            select(col(NotificationRow.title))
            .join_from(_Delivery, NotificationRow, joined)
            .where(mine)
            .order_by(col(_Delivery.id))
            .limit(SUMMARY_TITLES)
        )
        return HeldBack(
            count=count,
            titles=list((await self.session.execute(titles)).scalars()),
            since=since,
            until=until,
            first_id=first_id,
            tenant=tenant if tenant == other and of_tenants == count else None,
        )

    async def summarised(self, channel_id: str, kind: str, summary_id: int, at: datetime) -> None:
        """End what is held back: the summary tells it."""
        await self.session.execute(
            update(_Delivery)
            .where(_HELD, col(_Delivery.channel_id) == channel_id, col(_Delivery.kind) == kind)
            .values(
                state=DeliveryState.SUPPRESSED.value,
                error="over the channel's throttle: told in a summary",
                summary_id=summary_id,
                ended_at=at,
            )
        )

    async def claim(self, now: datetime, lease: timedelta, limit: int) -> list[Due]:
        """Take what is to be sent now. It is nobody else's until `lease` has passed, even if this process ends."""
        due = (
            select(col(_Delivery.id))
            .where(_PENDING, col(_Delivery.released_at).is_not(None), col(_Delivery.next_attempt_at) <= now)
            .where(col(_Delivery.channel_id).is_not(None))
            # Those tried least go first: one that its receiver never takes does not hold up the others.
            .order_by(col(_Delivery.attempts), col(_Delivery.id))
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        taken = list((await self.session.execute(due)).scalars())
        if not taken:
            return []
        await self.session.execute(
            update(_Delivery)
            .where(col(_Delivery.id).in_(taken))
            .values(attempts=col(_Delivery.attempts) + 1, next_attempt_at=now + lease)
        )
        statement: Any = (  # its columns are those of `Due`
            select(
                col(_Delivery.id).label("id"),
                col(NotificationChannelRow.id).label("channel_id"),
                col(NotificationChannelRow.url),
                col(_Delivery.attempts),
                col(_Delivery.created_at),
                col(NotificationRow.id).label("notification_id"),
                col(NotificationRow.kind),
                col(NotificationRow.severity),
                col(NotificationRow.title),
                col(NotificationRow.body),
            )
            .join_from(_Delivery, NotificationRow, col(NotificationRow.id) == col(_Delivery.notification_id))
            .join(NotificationChannelRow, col(NotificationChannelRow.id) == col(_Delivery.channel_id))
            .where(col(_Delivery.id).in_(taken))
            .order_by(col(_Delivery.attempts), col(_Delivery.id))
        )
        return [Due(**row) for row in (await self.session.execute(statement)).mappings()]

    async def settle(self, due: Due, **values: Any) -> bool:
        """Write how an attempt went; False if it was ended meanwhile, or is another process's by now."""
        statement = (
            update(_Delivery)
            .where(_PENDING, col(_Delivery.id) == due.id, col(_Delivery.attempts) == due.attempts)
            .values(**values)
            .returning(col(_Delivery.id))
        )
        return (await self.session.execute(statement)).scalar_one_or_none() is not None

    async def of(self, notification_ids: Sequence[int]) -> dict[int, list[NotificationDeliveryRow]]:
        """The deliveries of these notifications, by notification."""
        statement = (
            select(_Delivery)
            .where(col(_Delivery.notification_id).in_(notification_ids))
            .order_by(col(_Delivery.channel_name), col(_Delivery.id))
        )
        found: dict[int, list[NotificationDeliveryRow]] = {number: [] for number in notification_ids}
        for row in (await self.session.execute(statement)).scalars():
            found[row.notification_id].append(row)
        return found
