"""How long launches take here."""

from __future__ import annotations

import time
from typing import Final

from skyfleet.db.repositories import LaunchRepository
from skyfleet.db.session import Database

_REMEMBER_SECONDS: Final = 60.0
_LAUNCHES: Final = 50
UNKNOWN: Final = "unknown: no launch has finished here yet"


class Estimates:
    """What launches took lately, remembered for a minute."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str | None, tuple[float, str]] = {}

    async def of(self, provider: str | None) -> str:
        """The median of the last successful launches on that provider (None: anywhere), in words."""
        now = time.monotonic()
        known = self._known.get(provider)
        if known is not None and known[0] > now:
            return known[1]
        # Others who ask while this is looked up get the old answer rather than look as well.
        self._known[provider] = (now + 5.0, known[1] if known else UNKNOWN)
        async with self._database.transaction() as session:
            seconds, count = await LaunchRepository(session).typical_seconds(provider, _LAUNCHES)
        text = UNKNOWN
        if seconds is not None:
            where = f" on {provider}" if provider else ""
            launches = "launch" if count == 1 else f"{count} launches"
            text = f"about {_in_words(seconds)} (median of the last {launches}{where})"
        self._known[provider] = (now + _REMEMBER_SECONDS, text)
        return text


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
