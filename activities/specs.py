"""What launches asked for, remembered: a launch's request never changes, and every one of its steps needs it."""

from __future__ import annotations

from collections import OrderedDict

from activities.failures import final
from skyfleet.db.repositories import LaunchRepository
from skyfleet.domain.errors import ClassifiedError, ErrorKind, ErrorScope
from skyfleet.domain.launches import LaunchSpec

_KEPT = 2_000


class SpecCache:
    """The last specs that were read, in this process."""

    def __init__(self) -> None:
        self._specs: OrderedDict[str, LaunchSpec] = OrderedDict()

    async def of(self, launches: LaunchRepository, launch_id: str) -> LaunchSpec:
        """The spec of a launch; a final `ApplicationError` if there is no such launch."""
        spec = self._specs.get(launch_id)
        if spec is None:
            spec = await launches.spec(launch_id)
            if spec is None:
                raise final(invalid(f"There is no launch {launch_id} in the database."))
            self._specs[launch_id] = spec
            if len(self._specs) > _KEPT:
                self._specs.popitem(last=False)
        return spec


def invalid(message: str) -> ClassifiedError:
    """A launch that cannot be carried out, wherever it is tried."""
    return ClassifiedError(
        kind=ErrorKind.CONFIG, scope=ErrorScope.ACCOUNT, retryable=False, cloud="", message=message, raw=message
    )
