"""What the routes work with: made once a process, started and stopped with the app."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Final

from fastapi import Depends
from starlette.requests import HTTPConnection

from api.catalog import Catalog
from api.estimates import Estimates
from api.events import EventHub
from api.fleet import Fleet
from api.intents import IntentWriter, Marker
from api.security import Authenticator, LaunchLimiter
from api.temporal import Workflows
from skyfleet.db.budget_stops import BudgetStops
from skyfleet.db.session import Database
from skyfleet.notifier.process import Notifier
from skyfleet.settings import Settings

#: How long a request waits for Temporal, seconds: to start a workflow, and to hear from a running one.
START_TIMEOUT_S: Final = 3.0
TALK_TIMEOUT_S: Final = 2.0


class Services:
    """Database, workflows, and the caches and background tasks of this process."""

    def __init__(self, settings: Settings, workflows: Workflows) -> None:
        self.settings = settings
        self.workflows = workflows
        self.database = Database(settings.database_url.get_secret_value(), pool_size=settings.database_pool_size)
        token = settings.admin_token
        self.auth = Authenticator(self.database, token.get_secret_value() if token else None)
        self.limiter = LaunchLimiter(settings.launch_rate_per_minute)
        self.catalog = Catalog(self.database)
        self.estimates = Estimates(self.database)
        self.addresses = Notifier()  # the API checks addresses; what is sent, workers send
        self.stops = BudgetStops()
        self.events = EventHub(self.database)
        self.fleet = Fleet(self.database)
        self.intents = IntentWriter(self.database)
        self.marker = Marker(self.database, self.auth.used)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the background tasks. Needs neither the database nor Temporal to be there."""
        self._tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("launch events", self.events.run()),
                ("intents", self.intents.run()),
                ("marks", self.marker.run()),
            )
        ]

    async def stop(self) -> None:
        """Stop them, and close the connections."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self.database.aclose()


async def _services(connection: HTTPConnection) -> Services:
    services: Services = connection.app.state.services
    return services


Svc = Annotated[Services, Depends(_services)]
