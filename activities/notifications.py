"""Telling people: who hears of what, when, and how it went."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from temporalio import activity

from activities.failures import final
from activities.heartbeat import heartbeating
from activities.signatures import NotificationSteps
from activities.specs import invalid
from skyfleet.db.repositories import AuditRepository, ChannelRepository, DeliveryRepository, NotificationRepository
from skyfleet.db.repositories.notifications import Due, Waiting
from skyfleet.db.session import Database, Session
from skyfleet.db.tables import NotificationChannelRow
from skyfleet.domain import messages as m
from skyfleet.domain.notifications import (
    GIVE_UP_AFTER,
    DeliveryState,
    Notification,
    NotificationKind,
    Severity,
    retry_after,
    scrubbed,
    summary,
    throttle,
    wants,
)
from skyfleet.domain.sending import Outcome, Outgoing, SentState

_log = logging.getLogger(__name__)

#: At most so many at once: what is over is due with the next delivery, which is seconds away.
_ROUTED_AT_ONCE: Final = 1_000
_SENT_AT_ONCE: Final = 200


class Sender(Protocol):
    """Sends messages: `skyfleet.notifier.process.Notifier`."""

    async def send(self, messages: Sequence[Outgoing]) -> Mapping[int, Outcome]:
        """How each message went, by its id, in bounded time. Raises nothing for a receiver that fails."""
        ...


class NotificationActivities(NotificationSteps):
    """Steps of `NotificationWorkflow` and `ChannelTestWorkflow`.

    A message that is being sent is this process's for `lease`; ends the process before it wrote down how that went,
    the message is sent again after it, and may then arrive twice. `give_up_after` is how long a message is tried.
    """

    def __init__(
        self,
        database: Database,
        sender: Sender,
        *,
        sandbox: bool,
        lease: timedelta = timedelta(seconds=60),
        give_up_after: timedelta = GIVE_UP_AFTER,
    ) -> None:
        self._database = database
        self._sender = sender
        self._mark = "[sandbox] " if sandbox else ""
        self._lease = lease
        self._give_up_after = give_up_after

    @activity.defn
    async def deliver_notifications(self, request: m.DeliverInput) -> m.DeliverResult:
        """Settle who hears of what is new, send what the throttles let through, and write down how it went."""
        result = m.DeliverResult()
        async with self._database.transaction() as session:
            # One delivery at a time decides, in whichever worker: the channels are locked.
            channels = await ChannelRepository(session).all(lock=True)
            deliveries = DeliveryRepository(session)
            now = await deliveries.now()
            await _route(session, channels, now)
            for channel in channels:
                if not channel.enabled:
                    await deliveries.suppress(channel.id, "the channel is turned off")
                    continue
                for waiting in await deliveries.waiting(channel.id):
                    result.held += await _let_through(session, channel, waiting, now)
            due = await deliveries.claim(now, self._lease, _SENT_AT_ONCE)
        if not due:
            return result
        async with heartbeating({}):  # the next delivery waits for this one, but not for a worker that was killed
            outcomes = await self._sender.send([self._outgoing(one) for one in due])
        async with self._database.transaction() as session:
            now = await DeliveryRepository(session).now()
            for one in due:
                await self._settle(session, one, outcomes[one.id], now, result)
        return result

    @activity.defn
    async def test_channel(self, request: m.ChannelTestInput) -> m.ChannelTestResult:
        """Send a test message, past the rules and the throttle; what the receiver said."""
        async with self._database.transaction() as session:
            channel = await ChannelRepository(session).find(request.channel_id)
        if channel is None:
            raise final(invalid(f"There is no channel {request.channel_id}."))
        test = Outgoing(
            id=0,
            channel_id=channel.id,
            url=channel.url,
            title=f"{self._mark}Test of the channel {channel.name}",
            body=f"{request.requested_by} asked Skyfleet for this message. Nothing has happened.",
            severity=Severity.INFO,
        )
        async with heartbeating({}):
            outcome = (await self._sender.send([test]))[test.id]
        sent = outcome.state is SentState.SENT
        return m.ChannelTestResult(ok=sent, detail="" if sent else scrubbed(outcome.error, channel.url))

    def _outgoing(self, due: Due) -> Outgoing:
        return Outgoing(
            id=due.id,
            channel_id=due.channel_id,
            url=due.url,
            title=self._mark + due.title,
            body=due.body,
            severity=due.severity,
        )

    async def _settle(
        self, session: Session, due: Due, outcome: Outcome, now: datetime, result: m.DeliverResult
    ) -> None:
        deliveries = DeliveryRepository(session)
        if outcome.state is SentState.SENT:
            await deliveries.settle(due, state=DeliveryState.SENT.value, ended_at=now, error=None)
            result.sent += 1
            return
        error = scrubbed(outcome.error, due.url)
        if outcome.state is SentState.NOT_TRIED:
            # Not an attempt. Behind one that failed it waits as that one does; for want of time, not at all.
            pause = retry_after(due.attempts) if error else timedelta(0)
            await deliveries.settle(
                due, attempts=due.attempts - 1, next_attempt_at=now + pause, **({"error": error} if error else {})
            )
            return
        if now - due.created_at < self._give_up_after:
            again = now + retry_after(due.attempts)
            await deliveries.settle(due, next_attempt_at=again, error=error)
            _log.warning("notification %d was not taken by %s: %s", due.notification_id, due.channel_id, error)
            result.failed += 1
            return
        if await deliveries.settle(due, state=DeliveryState.FAILED.value, ended_at=now, error=error):
            AuditRepository(session).add(
                principal="skyfleet",
                action="notification.failed",
                subject=due.channel_id,
                outcome="failed",
                detail={
                    "notification": due.notification_id,
                    "kind": due.kind,
                    "title": due.title,
                    "attempts": due.attempts,
                    "error": error,
                },
            )
            result.given_up += 1


async def _route(session: Session, channels: Sequence[NotificationChannelRow], now: datetime) -> None:
    for notification in await NotificationRepository(session).unrouted(_ROUTED_AT_ONCE):
        kind = NotificationKind(notification.kind)
        wanting = [
            channel
            for channel in channels
            if channel.enabled
            and wants(
                kind,
                notification.tenant,
                kinds=channel.kinds,
                tenants=channel.tenants,
                min_severity=Severity(channel.min_severity),
            )
        ]
        await DeliveryRepository(session).open(notification, wanting)
        notification.routed_at = now
    await session.flush()


async def _let_through(session: Session, channel: NotificationChannelRow, waiting: Waiting, now: datetime) -> int:
    """Do what the throttle says for one kind; how many are held back from now on."""
    deliveries = DeliveryRepository(session)
    kind = waiting.kind
    used = await deliveries.used(channel.id, kind, now - timedelta(seconds=channel.throttle_seconds))
    verdict = throttle(channel.throttle_count, used=used, held=waiting.held, fresh=waiting.fresh)
    if verdict.summarise and waiting.held == 1:
        await deliveries.release(channel.id, kind, 1, now, held=True)
    elif verdict.summarise:
        held = await deliveries.held_back(channel.id, kind)
        title, body = summary(NotificationKind(kind), held.titles, held.count, held.since, held.until)
        written = Notification(
            kind=NotificationKind(kind),
            subject=channel.id,
            title=title,
            body=body,
            tenant=held.tenant,
            data={"summary_of": held.count},
            dedupe=f"summary:{held.first_id}",
        )
        summary_id = await NotificationRepository(session).add_summary(written, now)
        await deliveries.summarised(channel.id, kind, summary_id, now)
        await deliveries.open_summary(summary_id, channel, kind, now)
    if verdict.release:
        await deliveries.release(channel.id, kind, verdict.release, now)
    if verdict.hold:
        await deliveries.hold(channel.id, kind, now)
    return verdict.hold
