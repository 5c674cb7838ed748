"""Alert rules and dashboards in deploy/: `promtool` reads them, each alert fires, and nothing told twice is summed.

That the metrics exist which they ask for is tested on a running stack: tests/integration/test_observability.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from skyfleet.telemetry.metrics import fleet_families
from tests.deploy.queries import ALERTS, DASHBOARDS, DEPLOY, alerts, expressions, names_asked, names_told, panels
from tests.unit.test_telemetry import FIGURES

PROMETHEUS = DEPLOY / "prometheus"
RULE_TESTS = PROMETHEUS / "alerts.test.yml"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not there (Debian's package `prometheus`)"
)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool; its exit status and what it said."""
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs_promtool
def test_prometheus_reads_rules_and_configuration() -> None:
    for command in (("rules", ALERTS), ("config", "--syntax-only", PROMETHEUS / "prometheus.yml")):
        done = promtool("check", *command)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_each_alert_fires_when_it_should_and_else_keeps_quiet() -> None:
    done = promtool("test", "rules", RULE_TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_would_refuse_an_alert_that_does_not_fire(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text().replace("skyfleet_late_nodes", "skyfleet_renamed"))
    shutil.copy(RULE_TESTS, tmp_path)
    assert promtool("test", "rules", tmp_path / RULE_TESTS.name).returncode != 0


@needs_promtool
def test_every_query_is_promql(tmp_path: Path) -> None:
    """Grafana's own variable is a duration; else a query of a dashboard is one that a rule could have."""
    rules = [{"record": "a", "expr": query.replace("$__rate_interval", "1m")} for query in expressions()]
    file = tmp_path / "rules.yml"
    # Duplicate rules of one name are a warning only, and wanted here.
    file.write_text(yaml.safe_dump({"groups": [{"name": f"g{n}", "rules": [rule]} for n, rule in enumerate(rules)]}))
    done = promtool("check", "rules", "--lint=none", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_that_fires_and_one_that_does_not() -> None:
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for test in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for check in test["alert_rule_test"]:
            seen[bool(check["exp_alerts"])].add(check["alertname"])
    names = {rule["alert"] for rule in alerts()}
    assert seen == {True: names, False: names}


def test_every_alert_is_explained() -> None:
    text = (DEPLOY.parent / "docs" / "observability.md").read_text()
    for rule in alerts():
        assert f"`{rule['alert']}`" in text
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_every_panel_asks_the_data_source_that_is_provisioned() -> None:
    sources = yaml.safe_load((DEPLOY / "grafana" / "datasources.yml").read_text())["datasources"]
    uids = {source["uid"] for source in sources}
    assert {file.stem for file in DASHBOARDS} == {"fleet", "launches", "money"}
    for name, panel in panels():
        assert panel["targets"], f"{name}: {panel['title']}"
        assert {target["datasource"]["uid"] for target in panel["targets"]} <= uids


def test_what_every_api_process_tells_of_the_fleet_is_never_summed() -> None:
    """Two API processes see the same nodes; `max by` (or a comparison for each) counts them once."""
    fleet = {name for family in fleet_families(FIGURES, 10.0) for name in _series(family.name, family.type)}
    asked = [query for query in expressions() if names_asked(query) & fleet]
    assert len(asked) > 20
    for query in asked:
        flat = " ".join(query.split())
        for name in names_asked(query) & fleet:
            for before in re.split(rf"\b{name}\b", flat)[:-1]:
                once = re.search(r"\b(?:max|min)(?: by \([^)]*\))? ?\( ?$", before)
                assert once or flat == f"{name} == 0", query


def _series(name: str, kind: str) -> set[str]:
    if kind == "gaugehistogram":
        return {f"{name}_bucket", f"{name}_gcount", f"{name}_gsum"}
    return {name}


def test_names_are_found_in_queries_and_in_what_is_told() -> None:
    query = 'sum by (le, route) (rate(a_b_bucket{job=~"x.+", s="or"}[$__rate_interval])) / max(c) > 0.5 or absent(d)'
    assert names_asked(query) == {"a_b_bucket", "c", "d"}
    assert names_told("# TYPE a_total counter\n# TYPE b histogram\n") == {"a_total", "b_bucket", "b_sum", "b_count"}
