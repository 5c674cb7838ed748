"""The part of the Prometheus text exposition format that reading an engine's figures takes.

Source: "Exposition formats" in the Prometheus documentation, text format 0.0.4;
OpenMetrics writes its sample lines the same way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{.*\})?[ \t]+(\S+)(?:[ \t]+\S+.*)?")


def samples(text: str) -> Iterator[tuple[str, float]]:
    """(name, value) of each sample line; labels are dropped, and so are lines that cannot be read, NaN and ±Inf."""
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line.strip())
        if match is None:
            continue
        try:
            value = float(match.group(2))
        except ValueError:
            continue
        if math.isfinite(value):
            yield match.group(1), value
