"""What a benchmark says at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """`ratio` is measured in one run and compared with `goal`: at least it, or with `lower_is_better` at most."""

    name: str
    figures: dict[str, Any]
    ratio: float
    goal: float
    lower_is_better: bool = False

    @property
    def reached(self) -> bool:
        """Whether the goal was reached."""
        return self.ratio <= self.goal if self.lower_is_better else self.ratio >= self.goal

    def as_dict(self) -> dict[str, Any]:
        """The JSON line."""
        return {
            "name": self.name,
            "figures": self.figures,
            "ratio": round(self.ratio, 3),
            "goal": self.goal,
            "better": "lower" if self.lower_is_better else "higher",
            "reached": self.reached,
        }
