"""The queries of dashboards and alerts in deploy/, and the names of metrics in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))

_STRING = re.compile(r'"[^"]*"')
_LABELS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?!\w*\s*\()")
_WORDS = {"and", "or", "unless", "bool", "offset"}


def alerts() -> list[dict[str, Any]]:
    """The alerting rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[tuple[str, dict[str, Any]]]:
    """(dashboard, panel) of all dashboards."""
    return [(file.stem, panel) for file in DASHBOARDS for panel in json.loads(file.read_text())["panels"]]


def expressions() -> list[str]:
    """Every query."""
    shown = [target["expr"] for _, panel in panels() for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in alerts())]


def names_asked(query: str) -> set[str]:
    """Names of metrics in a query: what is neither a function, a label, a keyword nor in quotes."""
    bare = _LABELS.sub("", _STRING.sub("", query))
    return set(_NAME.findall(bare)) - _WORDS


def names_told(text: str) -> set[str]:
    """Names of the series that a text exposition tells, those without a sample yet among them."""
    told = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        told |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return told
