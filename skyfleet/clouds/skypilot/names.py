"""Names that were given up, and the moment in which one is asked for.

SkyPilot forgets a cluster that is gone, so it would make a new one of an old name. Ours are single-use.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol


class NameGivenUp(Exception):
    """The name was given up: nothing may be made under it."""


class Names(Protocol):
    """Kept where all workers see it, and longer than any of them lives."""

    def asking(self, name: str) -> AbstractAsyncContextManager[None]:
        """Held while a cloud is asked for a machine of that name. Raises `NameGivenUp` on entering."""
        ...

    async def give_up(self, name: str) -> None:
        """From the return of this call nobody asks for that name any more, nor is asking for it now."""
        ...
