"""`python -m ui`: the dashboard alone, against the API that `SKYFLEET_API` names.

Listens on `SKYFLEET_DASHBOARD_HOST` (127.0.0.1) and `SKYFLEET_DASHBOARD_PORT` (8501). Further arguments go to
`streamlit run` as they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def command(arguments: list[str]) -> list[str]:
    """The argument vector that runs the dashboard."""
    return [
        *(sys.executable, "-m", "streamlit", "run", str(HERE / "app.py")),
        *("--server.headless", "true", "--server.fileWatcherType", "none", "--browser.gatherUsageStats", "false"),
        *("--server.address", os.environ.get("SKYFLEET_DASHBOARD_HOST") or "127.0.0.1"),
        *("--server.port", os.environ.get("SKYFLEET_DASHBOARD_PORT") or "8501"),
        *arguments,
    ]


def main() -> None:
    """Become Streamlit, so that whoever started this process can stop it."""
    # The rooms import `ui` and `skyfleet` by name; Streamlit itself would only look beside `app.py`.
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    vector = command(sys.argv[1:])
    os.execve(vector[0], vector, environment)  # noqa: S606


if __name__ == "__main__":
    main()
