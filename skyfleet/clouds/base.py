"""The `Cloud` protocol: all that Skyfleet asks of a place that rents machines.

Every implementation passes `tests/contract/test_cloud_contract.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from skyfleet.domain.offers import CloudAccess, CloudInstance, CreateRequest, InstanceProgress, Offer


class Cloud(Protocol):
    """A backend that rents machines.

    Names are ours, deterministic, and single-use: once `terminate(name)` was accepted, a `create` of that name
    that is still under way or comes later never yields a machine. All methods raise `CloudError` when the cloud
    refuses and `CloudUnreachable` when there was no answer; neither says anything about state.
    """

    #: `Offer.backend` of everything that this implementation sells.
    backend: str
    #: Engines that its machines can run, the default first.
    engines: tuple[str, ...]

    async def offers(self) -> list[Offer]:
        """Everything on sale, whether there is capacity now or not."""
        ...

    async def access(self) -> list[CloudAccess]:
        """The clouds that it knows, and whether it may buy there. Asks them all, which can take long."""
        ...

    async def create(self, request: CreateRequest) -> CloudInstance:
        """Ask for a machine; returns once the cloud accepted. The same name again returns the same machine."""
        ...

    def progress(self, name: str) -> AsyncIterator[InstanceProgress]:
        """What the cloud observes while `name` comes up; ends when it runs, raises `CloudError` if it never will."""
        ...

    async def get(self, name: str) -> CloudInstance | None:
        """The machine of that name as the cloud sees it now; None if the cloud knows none."""
        ...

    async def list(self, owner: str) -> list[CloudInstance]:
        """All machines of that owner that are not terminated, in one call."""
        ...

    async def terminate(self, name: str) -> None:
        """Ask for the machine's end; idempotent, also for a name that the cloud does not know.

        Returning means accepted, not done: `get` says when it is gone (None or TERMINATED).
        """
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
