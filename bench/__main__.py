"""Run benchmarks. The last line of each is one JSON object: name, figures, ratio and goal."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import sys

from bench.report import Report
from skyfleet.exit import leave

NAMES = ("launches", "accept", "start", "sweep", "detection", "skypilot")


def main() -> int:
    """0 when every benchmark reached its goal, 1 when one fell short, 2 for an unknown name."""
    # SIGTERM ends a benchmark as Ctrl-C does: what it started is stopped first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = sys.argv[1:] or list(NAMES)
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    short = False
    for name in wanted:
        print(f"== {name}", flush=True)
        report: Report = asyncio.run(importlib.import_module(f"bench.{name}").run())
        print(json.dumps(report.as_dict()), flush=True)
        short |= not report.reached
    return 1 if short else 0


if __name__ == "__main__":
    leave(main())
