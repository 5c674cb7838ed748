"""The engine's output: every line to a file of bounded size, the last ones in memory, each shown to an observer."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path

from skyfleet.agent.logs import masked

KEPT_LINES = 200
MAX_LINE_CHARS = 2000
MAX_FILE_BYTES = 5 * 1024 * 1024
# Progress bars overwrite their line with a carriage return and may never end it.
_LINE_END = re.compile(rb"\r\n|\n|\r")
_MAX_PENDING_BYTES = 64 * 1024


class EngineLog:
    """Takes the engine's output as it comes. Secrets of the launch are masked before anything is kept."""

    def __init__(self, path: Path, observer: Callable[[str], None], max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._path = path
        self._observer = observer
        self._max_file_bytes = max_file_bytes
        self._kept: deque[str] = deque(maxlen=KEPT_LINES)
        self._pending = b""
        self._file = open(path, "a", encoding="utf-8", errors="replace")  # noqa: SIM115 - open as long as the agent
        self._size = path.stat().st_size

    def feed(self, data: bytes) -> None:
        """Take output; complete lines are kept and shown."""
        *lines, self._pending = _LINE_END.split(self._pending + data)
        if len(self._pending) > _MAX_PENDING_BYTES:
            lines.append(self._pending)
            self._pending = b""
        for line in lines:
            self.line(line.decode("utf-8", "replace").rstrip())

    def end_of_output(self) -> None:
        """The engine ended: what it wrote last without a line end is a line too."""
        rest, self._pending = self._pending, b""
        if rest.strip():
            self.line(rest.decode("utf-8", "replace").rstrip())

    def line(self, line: str) -> None:
        """Keep one line."""
        if not line.strip():
            return
        line = masked(line)[:MAX_LINE_CHARS]
        self._kept.append(line)
        self._write(line + "\n")
        self._observer(line)

    def tail(self, count: int) -> list[str]:
        """The last `count` lines, oldest first."""
        return list(self._kept)[-count:]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, text: str) -> None:
        size = len(text.encode("utf-8", "replace"))
        if self._size + size > self._max_file_bytes:
            # One older file is kept, so that the two together are what the log may take.
            self._file.close()
            self._path.replace(self._path.with_suffix(".log.1"))
            self._file = open(self._path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
            self._size = 0
        self._file.write(text)
        self._file.flush()
        self._size += size
