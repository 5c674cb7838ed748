"""Delivery on a real database, through the real notifier process, to a real HTTP receiver."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.notifications import NotificationActivities
from skyfleet.db.repositories import AuditRepository, ChannelRepository, DeliveryRepository, NotificationRepository
from skyfleet.db.session import Database
from skyfleet.db.tables import AuditRow, NotificationChannelRow, NotificationDeliveryRow
from skyfleet.domain import ids
from skyfleet.domain import messages as m
from skyfleet.domain.notifications import Notification, NotificationKind, Severity, masked
from skyfleet.domain.sending import Outcome, Outgoing
from skyfleet.notifier.process import Notifier
from tests.receiver import Receiver, receiving

SECRET = "s3cretpath"
NOW = timedelta(0)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def activities(database: Database, sender: Any = None, **options: Any) -> NotificationActivities:
    return NotificationActivities(database, sender or Notifier(seconds=10), sandbox=False, **options)


async def deliver(steps: NotificationActivities) -> m.DeliverResult:
    return await ActivityEnvironment().run(steps.deliver_notifications, m.DeliverInput())


async def make_channel(database: Database, url: str, name: str = "hook", **rules: Any) -> str:
    row = NotificationChannelRow(
        id=ids.new_channel_id(),
        name=name,
        url=url,
        masked_url=masked(url),
        service="JSON",
        created_by="test",
        **({"min_severity": "info", "throttle_count": 100, "throttle_seconds": 3600} | rules),
    )
    async with database.transaction() as session:
        ChannelRepository(session).add(row)
    return row.id


async def happen(database: Database, *subjects: str, kind: str = "launch_failed", tenant: str | None = "t") -> None:
    async with database.transaction() as session:
        for subject in subjects:
            await NotificationRepository(session).add(
                Notification(
                    kind=NotificationKind(kind),
                    subject=subject,
                    title=f"about {subject}",
                    body=f"what happened to {subject}",
                    tenant=tenant,
                    dedupe=f"{kind}:{subject}",
                )
            )


async def history(database: Database) -> dict[str, list[NotificationDeliveryRow]]:
    """The deliveries of each notification, by its title."""
    async with database.transaction() as session:
        rows = await NotificationRepository(session).page(limit=500)
        found = await DeliveryRepository(session).of([row.id or 0 for row in rows])
    return {row.title: found[row.id or 0] for row in rows}


async def states(database: Database) -> dict[str, list[str]]:
    return {title: [one.state for one in rows] for title, rows in (await history(database)).items()}


async def due_now(database: Database) -> None:
    """Let the pauses between tries, and the lease of a message that is being sent, be over."""
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE notification_deliveries SET next_attempt_at = now() WHERE state = 'pending'")
        )


async def period_over(database: Database) -> None:
    """Let the throttles' periods be over."""
    async with database.transaction() as session:
        await session.execute(text("UPDATE notification_deliveries SET ended_at = ended_at - interval '2 hours'"))


async def audits(database: Database) -> Sequence[AuditRow]:
    async with database.transaction() as session:
        return await AuditRepository(session).page()


# --- once ------------------------------------------------------------------------------------------------------------


async def test_a_message_is_posted_once_whatever_is_repeated(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url(SECRET))
    await happen(database, "launch-1")
    await happen(database, "launch-1")  # the activity that wrote it ran again
    steps = activities(database)
    assert await deliver(steps) == m.DeliverResult(sent=1)
    assert await deliver(steps) == m.DeliverResult()
    assert await deliver(activities(database)) == m.DeliverResult()  # another worker
    (post,) = receiver.posts(SECRET)
    assert post["title"] == "about launch-1"
    assert post["message"] == "what happened to launch-1"
    assert post["type"] == "warning"
    assert await states(database) == {"about launch-1": ["sent"]}


async def test_what_is_rolled_back_is_not_told(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url(SECRET))

    async def fail() -> None:
        async with database.transaction() as session:
            await NotificationRepository(session).add(
                Notification(kind=NotificationKind.NODE_LOST, subject="n", title="t", dedupe="d")
            )
            raise RuntimeError("after it was written")

    with pytest.raises(RuntimeError, match="after it was written"):
        await fail()
    assert await deliver(activities(database)) == m.DeliverResult()


async def test_two_deliveries_at_once_send_it_once(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url(SECRET))
    await happen(database, *(f"launch-{number}" for number in range(5)))
    results = await asyncio.gather(*(deliver(activities(database)) for _ in range(3)))
    assert sum(result.sent for result in results) == 5
    assert sorted(receiver.titles()) == [f"about launch-{number}" for number in range(5)]


class KilledAfterSending:
    """A worker that is killed when the receiver has the message and the database does not know it yet."""

    async def send(self, messages: Sequence[Outgoing]) -> Mapping[int, Outcome]:
        await Notifier(seconds=10).send(messages)
        raise asyncio.CancelledError


class KilledBeforeSending:
    """A worker that is killed with a message in its hands."""

    async def send(self, messages: Sequence[Outgoing]) -> Mapping[int, Outcome]:
        raise asyncio.CancelledError


@pytest.mark.parametrize(("killed", "posts"), [(KilledBeforeSending(), 1), (KilledAfterSending(), 2)])
async def test_a_killed_worker_loses_nothing(database: Database, receiver: Receiver, killed: Any, posts: int) -> None:
    await make_channel(database, receiver.url(SECRET))
    await happen(database, "launch-1")
    with pytest.raises(asyncio.CancelledError):
        await deliver(activities(database, killed))
    assert await deliver(activities(database)) == m.DeliverResult()  # it may still be on its way
    await due_now(database)
    assert (await deliver(activities(database))).sent == 1
    assert len(receiver.posts()) == posts  # doubled only between the sending and its commit
    (delivery,) = (await history(database))["about launch-1"]
    assert (delivery.state, delivery.attempts) == ("sent", 2)


# --- rules -----------------------------------------------------------------------------------------------------------


async def test_each_channel_hears_what_its_rules_say(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url("all"), "all")
    await make_channel(database, receiver.url("kinds"), "kinds", kinds=["node_lost"])
    await make_channel(database, receiver.url("tenants"), "tenants", tenants=["other"])
    await make_channel(database, receiver.url("severe"), "severe", min_severity=Severity.CRITICAL.value)
    await make_channel(database, receiver.url("off"), "off", enabled=False)
    await happen(database, "launch-1")
    await happen(database, "launch-2", tenant="other")
    await happen(database, "node-1", kind="node_lost")
    await happen(database, "fleet", kind="breaker_open", tenant=None)
    assert (await deliver(activities(database))).sent == 4 + 1 + 1 + 2
    assert {path: len(receiver.posts(path)) for path in ("all", "kinds", "tenants", "severe", "off")} == {
        "all": 4,
        "kinds": 1,
        "tenants": 1,
        "severe": 2,
        "off": 0,
    }


async def test_what_no_channel_wants_is_settled_and_not_sent_to_one_that_comes_later(
    database: Database, receiver: Receiver
) -> None:
    await happen(database, "launch-1")
    await deliver(activities(database))
    await make_channel(database, receiver.url(SECRET))
    assert await deliver(activities(database)) == m.DeliverResult()
    assert await states(database) == {"about launch-1": []}


async def test_a_sandbox_says_so(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url(SECRET))
    await happen(database, "launch-1")
    await deliver(NotificationActivities(database, Notifier(), sandbox=True))
    assert receiver.titles() == ["[sandbox] about launch-1"]


async def test_a_channel_that_is_turned_off_or_removed_sends_no_more(database: Database, receiver: Receiver) -> None:
    receiver.answers = [500, 500]
    removed = await make_channel(database, receiver.url("removed"), "removed")
    off = await make_channel(database, receiver.url("off"), "off")
    await happen(database, "launch-1")
    assert (await deliver(activities(database))).failed == 2
    async with database.transaction() as session:
        channels = ChannelRepository(session)
        row = await channels.find(removed)
        assert row is not None
        await channels.remove(row)
        turned_off = await channels.find(off)
        assert turned_off is not None
        turned_off.enabled = False
    await due_now(database)
    assert await deliver(activities(database)) == m.DeliverResult()
    assert len(receiver.posts()) == 2
    told = {one.channel_name: (one.state, one.error) for one in (await history(database))["about launch-1"]}
    assert told == {
        "removed": ("suppressed", "the channel was removed"),
        "off": ("suppressed", "the channel is turned off"),
    }


# --- the throttle ----------------------------------------------------------------------------------------------------


async def test_over_the_throttle_the_surplus_comes_as_one_summary(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url(SECRET), throttle_count=2, throttle_seconds=3600)
    await happen(database, *(f"launch-{number}" for number in range(8)))
    await happen(database, "node-1", kind="node_lost")  # another kind has its own count
    steps = activities(database)
    assert await deliver(steps) == m.DeliverResult(sent=3, held=6)
    await happen(database, *(f"launch-{number}" for number in range(8, 14)))
    assert await deliver(steps) == m.DeliverResult(held=6)
    await period_over(database)
    assert (await deliver(steps)).sent == 1
    assert receiver.titles()[:3] == ["about launch-0", "about launch-1", "about node-1"]
    assert len(receiver.posts()) == 4
    last = receiver.posts()[-1]
    assert last["title"] == "12 more: launch failed"
    assert "- about launch-2" in last["message"]
    assert "and 2 more" in last["message"]
    rows = await history(database)
    (summary,) = rows["12 more: launch failed"]
    assert summary.state == "sent"
    (told,) = rows["about launch-5"]
    assert (told.state, told.summary_id) == ("suppressed", summary.notification_id)
    assert [one.state for one in rows["about launch-13"]] == ["suppressed"]
    assert await deliver(steps) == m.DeliverResult()


async def test_one_that_was_held_back_comes_as_it_is(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url(SECRET), throttle_count=1, throttle_seconds=3600)
    await happen(database, "launch-0", "launch-1")
    await deliver(activities(database))
    await period_over(database)
    await deliver(activities(database))
    assert receiver.titles() == ["about launch-0", "about launch-1"]


async def test_a_receiver_that_was_away_is_not_flooded_when_it_is_back(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url(SECRET), throttle_count=2, throttle_seconds=3600)
    receiver.stop()
    steps = activities(database)
    for number in range(6):
        await happen(database, f"launch-{number}")
        await due_now(database)
        await deliver(steps)
    receiver.start()
    await due_now(database)
    assert (await deliver(steps)).sent == 2
    await period_over(database)
    assert (await deliver(steps)).sent == 1
    assert receiver.titles() == ["about launch-0", "about launch-1", "4 more: launch failed"]


# --- receivers that fail ---------------------------------------------------------------------------------------------


async def test_an_error_is_tried_again_with_back_off(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url(SECRET))
    receiver.answers = [500]
    await happen(database, "launch-1")
    steps = activities(database)
    assert await deliver(steps) == m.DeliverResult(failed=1)
    (delivery,) = (await history(database))["about launch-1"]
    assert delivery.error is not None
    assert "500" in delivery.error
    assert delivery.next_attempt_at is not None
    assert await deliver(steps) == m.DeliverResult()  # not yet
    await due_now(database)
    assert await deliver(steps) == m.DeliverResult(sent=1)
    assert len(receiver.posts()) == 2
    (delivery,) = (await history(database))["about launch-1"]
    assert (delivery.state, delivery.attempts, delivery.error) == ("sent", 2, None)


async def test_a_receiver_that_hangs_holds_up_nobody_else(database: Database, receiver: Receiver) -> None:
    with receiving() as hanging:
        hanging.hanging = True
        # Left to itself apprise would wait for an hour: the notifier's own limit ends it.
        await make_channel(database, f"{hanging.url(SECRET)}?rto=3600&cto=3600", "hanging")
        await make_channel(database, receiver.url("well"), "well")
        await happen(database, "launch-1", "launch-2")
        began = time.monotonic()
        result = await deliver(activities(database, Notifier(seconds=3)))
        assert time.monotonic() - began < 3 + 20
        assert result == m.DeliverResult(sent=2, failed=1)
        assert receiver.titles("well") == ["about launch-1", "about launch-2"]
        assert hanging.titles() == ["about launch-1"]
        rows = await history(database)
        first, second = (
            next(one for one in rows[title] if one.channel_name == "hanging") for title in rows if "launch" in title
        )
        assert {(first.attempts, first.error), (second.attempts, second.error)} == {
            (1, "no answer in 3 s"),
            (0, "no answer in 3 s"),
        }
        hanging.stop()
        hanging.hanging = False
        hanging.start()
        await due_now(database)
        assert (await deliver(activities(database))).sent == 2


async def test_a_message_that_is_never_taken_does_not_hold_up_the_next(database: Database, receiver: Receiver) -> None:
    await make_channel(database, receiver.url(SECRET))
    await happen(database, "launch-1", "launch-2")
    receiver.answers = [413]
    assert await deliver(activities(database)) == m.DeliverResult(failed=1)
    await due_now(database)
    receiver.answers = [200, 413]
    assert await deliver(activities(database)) == m.DeliverResult(sent=1, failed=1)
    assert receiver.titles() == ["about launch-1", "about launch-2", "about launch-1"]


async def test_after_a_day_it_is_given_up_and_audited(database: Database) -> None:
    receiver = Receiver()  # nobody listens
    channel = await make_channel(database, receiver.url(SECRET))
    await happen(database, "launch-1")
    assert await deliver(activities(database, give_up_after=NOW)) == m.DeliverResult(given_up=1)
    await due_now(database)
    assert await deliver(activities(database)) == m.DeliverResult()
    (audit,) = await audits(database)
    assert (audit.action, audit.subject, audit.outcome) == ("notification.failed", channel, "failed")
    assert "Connection refused" in audit.detail["error"]
    assert await states(database) == {"about launch-1": ["failed"]}


async def test_a_notifier_that_cannot_run_is_an_error_to_try_again(
    database: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_channel(database, receiver.url(SECRET))
    await happen(database, "launch-1")
    with monkeypatch.context() as broken:
        broken.setattr("sys.executable", "/nowhere/python")
        assert await deliver(activities(database)) == m.DeliverResult(failed=1)
    await due_now(database)
    assert (await deliver(activities(database))).sent == 1


# --- the address is a secret -----------------------------------------------------------------------------------------


async def test_the_address_is_in_no_row_and_no_log(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    port = Receiver().port  # nobody listens
    await make_channel(database, f"json://me:pa55word@127.0.0.1:{port}/{SECRET}?+X-Token=t0ken", "away")
    await make_channel(database, f"mailto://me:pa55word@127.0.0.1:{port}?to=a@example.org&from=b@example.org", "mail")
    await happen(database, "launch-1")
    await deliver(activities(database))
    await due_now(database)
    assert (await deliver(activities(database, give_up_after=NOW))).given_up == 2
    shown = [caplog.text]
    async with database.transaction() as session:
        for table in ("notifications", "notification_deliveries", "audit"):
            shown += [str(row) for row in await session.execute(text(f"SELECT t::text FROM {table} t"))]  # noqa: S608
    assert len(shown) == 1 + 1 + 2 + 2
    assert not [secret for secret in (SECRET, "pa55word", "t0ken") if secret in "\n".join(shown)]


# --- tests of a channel ----------------------------------------------------------------------------------------------


async def test_a_test_is_sent_past_the_rules(database: Database, receiver: Receiver) -> None:
    channel = await make_channel(database, receiver.url(SECRET), kinds=["node_lost"], enabled=False)
    request = m.ChannelTestInput(channel_id=channel, requested_by="ada")
    steps = activities(database)
    assert await ActivityEnvironment().run(steps.test_channel, request) == m.ChannelTestResult(ok=True)
    assert receiver.titles() == ["Test of the channel hook"]
    receiver.answers = [403]
    refused = await ActivityEnvironment().run(steps.test_channel, request)
    assert not refused.ok
    assert "403" in refused.detail
    assert SECRET not in refused.detail
    with pytest.raises(ApplicationError):
        await ActivityEnvironment().run(steps.test_channel, m.ChannelTestInput(channel_id="none", requested_by="ada"))
