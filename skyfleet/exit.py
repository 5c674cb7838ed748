"""Leave the process with its own status, in the one place where that is settled.

On Python 3.11 and 3.12 a process that used the Temporal client sometimes aborts while the interpreter shuts down
(`PyGILState_Release`, sdk-python issue 300), after its work is done. Whoever used the client leaves through here:
command line, worker, API, and pytest (`tests/conftest.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Flush what was written, and end the process at once with `code`. `atexit` handlers do not run."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        # A reader that went away (`skyfleet events | head`) must not turn into another status.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
