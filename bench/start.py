"""`skyfleet up` to healthy on a fresh folder and on a used one, and what the processes weigh.

The ratio is seconds to healthy on a fresh folder over the 10 s that it may take.
"""

from __future__ import annotations

import time

from bench.report import Report
from bench.stack import rss_mb, running

ROUNDS = 3
LIMITS_MB = {"api": 200.0, "worker": 250.0}


async def run() -> Report:
    """Start it several times; the slowest counts."""
    seconds, memory = [], {}
    for number in range(ROUNDS):
        began = time.perf_counter()
        async with running(world=None) as stack:
            seconds.append(time.perf_counter() - began)
            memory = {name: round(rss_mb(pid), 1) for name, pid in stack["pids"].items()}
        print(f"round {number + 1}: healthy after {seconds[-1]:.2f} s; MB: {memory}", flush=True)
    heavy = {name: memory[name] for name, limit in LIMITS_MB.items() if memory[name] > limit}
    if heavy:
        print(f"over their limits: {heavy}", flush=True)
    return Report(
        "start",
        {"seconds": round(max(seconds), 2), "memory_mb": memory, "over_limit_mb": heavy},
        99.0 if heavy else max(seconds) / 10.0,
        1.0,
        lower_is_better=True,
    )
