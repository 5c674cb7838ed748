"""What the doctor judges without looking at anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from skyfleet.domain.doctor import CheckStatus, DoctorReport, Reach, failed, judge_pollers, note, ok, reach, warning

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "addresses", "found"),
    [
        ("http://127.0.0.1:8080", [], Reach.HERE),
        ("http://[::1]:8080", [], Reach.HERE),
        ("http://0.0.0.0:8080", [], Reach.HERE),
        ("http://localhost", [], Reach.HERE),
        ("http://fleet.test", ["127.0.0.1", "::1"], Reach.HERE),
        ("http://192.168.1.4:8080", [], Reach.PRIVATE),
        ("http://100.64.0.7", [], Reach.PRIVATE),  # carrier-grade NAT, and what Tailscale gives
        ("http://169.254.0.9", [], Reach.PRIVATE),
        ("http://[fd00::1]", [], Reach.PRIVATE),
        ("http://fleet", [], Reach.PRIVATE),
        ("http://skyfleet.svc.internal", [], Reach.PRIVATE),
        ("http://fleet.example.org", ["10.1.2.3"], Reach.PRIVATE),
        ("http://fleet.example.org", ["127.0.0.1", "10.1.2.3"], Reach.PRIVATE),
        ("https://fleet.example.org", [], Reach.PUBLIC),
        ("https://fleet.example.org", ["10.1.2.3", "8.8.8.8"], Reach.PUBLIC),
        ("http://8.8.8.8:8080", [], Reach.PUBLIC),
    ],
)
def test_from_where_an_address_can_be_reached(url: str, addresses: list[str], found: Reach) -> None:
    assert reach(url, addresses) is found


@pytest.mark.parametrize(
    ("ages_s", "status", "detail"),
    [
        ([], CheckStatus.FAILED, "nobody polls this queue"),
        ([1.0], CheckStatus.OK, "1 polling"),
        ([1.0, 59.0, 400.0], CheckStatus.OK, "2 polling"),
        ([76.0, 290.0], CheckStatus.FAILED, "the last worker asked for work 76 s ago"),
        ([-3.0], CheckStatus.OK, "1 polling"),  # Temporal's clock may be ahead
    ],
)
def test_whether_somebody_works_on_a_queue(ages_s: list[float], status: CheckStatus, detail: str) -> None:
    check = judge_pollers("control", [NOW - timedelta(seconds=age) for age in ages_s], NOW)
    assert (check.status, check.detail) == (status, detail)
    assert bool(check.mend) is (status is CheckStatus.FAILED)


def test_only_a_failed_check_makes_the_report_fail() -> None:
    fine = [ok("a", "is there"), note("b", "for your information"), warning("c", "half", "mend it")]
    assert DoctorReport.of(fine).ok
    assert not DoctorReport.of([*fine, failed("d", "is away", "start it")]).ok
