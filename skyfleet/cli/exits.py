"""Exit codes of every command, for scripts. Documented in docs/cli.md."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a command's exit status says."""

    OK = 0
    FAILED = 1  # the launch failed, or the API refused
    USAGE = 2
    NOT_FOUND = 3
    FORBIDDEN = 4  # no, wrong or insufficient credentials
    UNREACHABLE = 5
    CANCELLED = 6
    TIMEOUT = 7
    INTERRUPTED = 130  # 128 + SIGINT


HELP = (
    "Exit codes: 0 done · 1 the launch failed, or the API refused · 2 wrong usage · 3 not found · "
    "4 not authorised · 5 the API cannot be reached · 6 the launch was cancelled · 7 a deadline passed · "
    "130 interrupted."
)
