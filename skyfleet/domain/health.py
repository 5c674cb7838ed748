"""How well a node is."""

from __future__ import annotations


def health_score(engine_healthy: bool) -> float:
    """From 0 to 1, as of one heartbeat: 1.0 when the engine answers, 0.3 when only the agent does."""
    return 1.0 if engine_healthy else 0.3
