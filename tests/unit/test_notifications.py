"""What is told, to whom, how often; and that the address of a channel is not shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfleet.domain.notifications import (
    GIVE_UP_AFTER,
    NotificationKind,
    Severity,
    Verdict,
    breaker_open,
    budget_alert,
    launch_failed,
    masked,
    node_lost,
    node_preempted,
    orphan_found,
    retry_after,
    scrubbed,
    summary,
    throttle,
    wants,
)

AT = datetime(2027, 1, 31, 18, tzinfo=UTC)


# --- the throttle ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "used", "held", "fresh", "verdict"),
    [
        (3, 0, 0, 2, Verdict(False, 2, 0)),  # room for all
        (3, 0, 0, 5, Verdict(False, 3, 2)),  # the surplus is held back
        (3, 1, 0, 5, Verdict(False, 2, 3)),
        (3, 3, 0, 1, Verdict(False, 0, 1)),  # no room
        (3, 3, 7, 2, Verdict(False, 0, 2)),  # no room for the summary either
        (3, 2, 7, 2, Verdict(True, 0, 2)),  # the summary takes the last place
        (3, 0, 7, 2, Verdict(True, 2, 0)),
        (3, 0, 7, 0, Verdict(True, 0, 0)),
        (1, 0, 1, 1, Verdict(True, 0, 1)),
        (3, 9, 0, 1, Verdict(False, 0, 1)),  # the limit was lowered meanwhile
        (3, 0, 0, 0, Verdict(False, 0, 0)),
    ],
)
def test_what_the_throttle_lets_through(limit: int, used: int, held: int, fresh: int, verdict: Verdict) -> None:
    assert throttle(limit, used=used, held=held, fresh=fresh) == verdict


_Counts = st.integers(min_value=0, max_value=200)


@given(limit=st.integers(min_value=1, max_value=100), used=_Counts, held=_Counts, fresh=_Counts)
def test_no_period_has_more_than_the_limit_and_nothing_is_forgotten(
    limit: int, used: int, held: int, fresh: int
) -> None:
    verdict = throttle(limit, used=used, held=held, fresh=fresh)
    sent = verdict.release + verdict.summarise
    assert sent == 0 or used + sent <= limit
    assert verdict.release + verdict.hold == fresh
    assert verdict.summarise == (held > 0 and used < limit)
    if held and not verdict.summarise:
        assert verdict.release == 0  # nothing overtakes what waits


@given(bursts=st.lists(st.integers(min_value=0, max_value=30), min_size=1, max_size=40))
def test_everything_is_told_once_in_the_end(bursts: list[int]) -> None:
    """One period after the other: each message is sent by itself or counted in exactly one summary."""
    held = told = 0
    for fresh in [*bursts, 0]:
        verdict = throttle(3, used=0, held=held, fresh=fresh)
        told += verdict.release + (held if verdict.summarise else 0)
        held = verdict.hold
    assert (told, held) == (sum(bursts), 0)


def test_a_summary_names_the_first_and_counts_the_rest() -> None:
    titles = [f"Launch failed: model-{number}" for number in range(10)]
    title, body = summary(NotificationKind.LAUNCH_FAILED, titles, 22, AT, AT + timedelta(minutes=5))
    assert title == "22 more: launch failed"
    assert "2027-01-31 18:00:00 to 2027-01-31 18:05:00 UTC" in body
    assert body.splitlines()[-2:] == ["- Launch failed: model-9", "and 12 more"]
    assert "more" not in summary(NotificationKind.NODE_LOST, ["a", "b"], 2, AT, AT)[1]


def test_tries_grow_further_apart_up_to_half_an_hour() -> None:
    assert [retry_after(attempts).total_seconds() for attempts in (1, 2, 3, 8, 9, 1000)] == [
        10,
        20,
        40,
        1280,
        1800,
        1800,
    ]
    # For the day that a message is tried, some fifty tries: a receiver that is away is not stormed.
    spent, tries = timedelta(0), 0
    while spent < GIVE_UP_AFTER:
        tries += 1
        spent += retry_after(tries)
    assert 40 < tries < 70


# --- who hears of it -------------------------------------------------------------------------------------------------


def _wants(kind: NotificationKind, tenant: str | None, **rules: object) -> bool:
    settled = {"kinds": [], "tenants": [], "min_severity": Severity.INFO} | rules
    return wants(kind, tenant, **settled)  # type: ignore[arg-type]


def test_a_channel_without_rules_hears_of_everything() -> None:
    assert all(_wants(kind, tenant) for kind in NotificationKind for tenant in ("research", None))


def test_rules_are_all_kept() -> None:
    lost, failed = NotificationKind.NODE_LOST, NotificationKind.LAUNCH_FAILED
    assert _wants(lost, "a", kinds=["node_lost"])
    assert not _wants(failed, "a", kinds=["node_lost"])
    assert _wants(lost, "a", tenants=["a", "b"])
    assert not _wants(lost, "c", tenants=["a", "b"])
    assert not _wants(NotificationKind.BREAKER_OPEN, None, tenants=["a"])  # the whole fleet's is not one tenant's
    assert _wants(lost, "a", min_severity=Severity.CRITICAL)
    assert not _wants(failed, "a", min_severity=Severity.CRITICAL)
    assert _wants(failed, "a", min_severity=Severity.WARNING)
    assert not _wants(lost, "c", kinds=["node_lost"], tenants=["a"])


def test_a_fact_is_told_once_and_another_is_another() -> None:
    failed = {"tenant": "t", "model_name": "m", "attempts": 2, "message": "No capacity."}
    node = {"tenant": "t", "where": "aws/us-east-1", "model_name": "m"}
    orphan = {"backend": "local", "reason": "no launch claims it"}
    budget = {"name": "gpus", "tenant": "t", "spent": Decimal("80.5"), "limit": Decimal(100)}
    told = [
        launch_failed("launch-1", **failed),  # type: ignore[arg-type]
        launch_failed("launch-2", **failed),  # type: ignore[arg-type]
        node_lost("node-1", reason="gone", **node),
        node_preempted("node-1", source="aws-imds-rebalance", deadline=None, **node),
        node_preempted("node-1", source="aws-imds", deadline=AT, **node),
        orphan_found("sf-1-1", machine="i-1", **orphan),
        orphan_found("sf-1-1", machine="i-2", **orphan),
        budget_alert("b", period="2027-01", fraction=Decimal("0.8"), **budget),  # type: ignore[arg-type]
        budget_alert("b", period="2027-01", fraction=Decimal(1), **budget),  # type: ignore[arg-type]
        budget_alert("b", period="2027-02", fraction=Decimal("0.8"), **budget),  # type: ignore[arg-type]
        breaker_open("fleet", sick=5, nodes=20, opened_at=AT),
        breaker_open("fleet", sick=5, nodes=20, opened_at=AT + timedelta(hours=1)),
    ]
    assert len({one.dedupe for one in told}) == len(told)
    assert {one.kind for one in told} == set(NotificationKind)
    again = budget_alert("b", period="2027-01", fraction=Decimal("0.80"), **budget)  # type: ignore[arg-type]
    assert again.dedupe == told[7].dedupe


def test_what_is_told_says_what_happened_and_what_to_try() -> None:
    told = launch_failed(
        "launch-1", tenant="t", model_name="m", attempts=1, message="No capacity.", next_steps=["wait", "on-demand"]
    )
    assert told.body == "launch-1, after 1 attempt: No capacity.\nTo try:\n- wait\n- on-demand"
    plain = launch_failed("launch-1", tenant="t", model_name="m", attempts=0, message="No.")
    assert plain.body == "launch-1, after 0 attempts: No."
    taken = node_preempted("node-1", tenant="t", where="aws/us-east-1", model_name="m", source="aws-imds", deadline=AT)
    assert taken.body == "node-1 (m on aws/us-east-1) will be taken away at 2027-01-31 18:00:00 UTC (aws-imds)"
    spent = budget_alert(
        "b",
        name="gpus",
        tenant=None,
        period="2027-01",
        spent=Decimal("80.5"),
        limit=Decimal(100),
        fraction=Decimal("0.8"),
    )
    assert (spent.title, spent.body) == ("Budget gpus: 80 % spent", "$80.50 of $100.00 are spent in 2027-01.")


# --- the address is a secret -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("json://127.0.0.1:8000/hooks/s3cret?x=s3cret", "json://127.0.0.1:8000/****"),
        ("jsons://user:s3cret@hooks.example.org", "jsons://****@hooks.example.org"),
        ("jsons://hooks.example.org", "jsons://hooks.example.org"),
        ("json://[::1]:80/s3cret", "json://[::1]:80/****"),
        ("slack://T1JJ3T3L2/A1BRTD4JD/s3cret/#gpu", "slack://****"),
        ("https://hooks.slack.com/services/T1/B1/s3cret", "https://hooks.slack.com/****"),
        ("mailtos://me:s3cret@example.org?to=a@b.org", "mailtos://****@example.org/****"),
        ("mailto://?to=s3cret@b.org", "mailto://****"),
        ("ntfy://s3cret", "ntfy://****"),
        ("json://user:s3/cret@host/", "json://****"),  # a password that was not quoted
        ("json://user:12#s3cret@host/", "json://****"),
        ("json://us?er:s3cret@host/", "json://****"),
        ("JSON://HOST/s3cret", "json://host/****"),
        ("tgram://s3cret/123", "tgram://****"),
        ("s3cret", "****"),
        ("json://[s3cret", "json://****"),
        ("", "****"),
    ],
)
def test_of_an_address_only_its_scheme_and_host_are_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


@given(st.text(max_size=60), st.sampled_from(["", "json://", "slack://", "mailto://u:p@"]))
def test_masking_takes_any_text(text: str, scheme: str) -> None:
    assert isinstance(masked(scheme + text), str)
    assert isinstance(scrubbed(text, scheme + text), str)


def test_an_error_does_not_repeat_the_address() -> None:
    url = "jsons://me:p%40ssword@hooks.example.org:8443/v1/t0ken?key=abcdef"
    error = (
        "HTTPSConnectionPool(host='hooks.example.org', port=8443): Max retries exceeded with url: /v1/t0ken?key=abcdef "
        f"for {url} as me:p@ssword (T0KEN)"
    )
    clean = scrubbed(error, url)
    assert not [secret for secret in ("t0ken", "T0KEN", "abcdef", "ssword", "p%40") if secret in clean]
    assert "hooks.example.org" in clean
    assert "Max retries exceeded" in clean


def test_an_error_has_an_end() -> None:
    assert len(scrubbed("x" * 10_000, "json://host")) == 500
