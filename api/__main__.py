"""`python -m api`: serve until SIGTERM or SIGINT, then finish what is under way and leave with status 0."""

from __future__ import annotations

import signal
import socket

import uvicorn
from sse_starlette.sse import AppStatus

from api.app import create_app
from api.services import Services
from skyfleet.exit import leave
from skyfleet.settings import settings
from skyfleet.telemetry import logs, traces

#: How long requests and event streams may take to end, seconds.
_GRACE_SECONDS = 5


class _Server(uvicorn.Server):
    """Ends the event streams first: a stream of a launch that goes on has no end of its own."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._services.events.close()
        await super().shutdown(sockets)


def main() -> int:
    """Serve; the exit status. 1 if the address cannot be had."""
    configured = settings()
    logs.configure(configured.log_format)
    traces.configure("skyfleet-api")
    # Its own way would cut streams off in the middle.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    app = create_app(configured)
    server = _Server(
        uvicorn.Config(
            app,
            host=configured.api_host,
            port=configured.api_port,
            loop="uvloop",
            http="httptools",
            ws="websockets-sansio",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            # Longer than clients and load balancers keep an idle connection, so that it is they who close it: a request
            # sent into a connection that we just closed is lost.
            timeout_keep_alive=75,
            ws_max_size=65_536,
        ),
        app.state.services,
    )
    # uvicorn stops in an orderly way and then raises the signal again for whoever was there before it: nobody.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        server.run()
    except SystemExit:  # what uvicorn makes of an address that is taken, after saying so
        return 1
    finally:
        traces.shutdown()
    return 0 if server.started else 1


if __name__ == "__main__":
    leave(main())
