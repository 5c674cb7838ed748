"""The log file of one child: appended to by the child itself, kept within bounds, and read back in part."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

LIMIT_BYTES: Final = 10_000_000


class LogFile:
    """`DATA/logs/NAME.log`, and one older part beside it, `NAME.log.1`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = 0  # where the newest run's lines start
        self._copied = 0

    def open(self) -> int:
        """A descriptor to append to, for a new run of the child."""
        self.bound()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mark = self._copied = os.fstat(descriptor).st_size
        return descriptor

    def bound(self) -> None:
        """Move what is there aside once it is too large. The child may go on writing: its descriptor appends."""
        if not self.path.exists() or self.path.stat().st_size <= LIMIT_BYTES:
            return
        shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
        os.truncate(self.path, 0)
        self._mark = self._copied = 0

    def tail(self, lines: int = 8) -> list[str]:
        """The last lines that the newest run wrote, without empty ones."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._mark, size - 16_384))
            text = file.read().decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    def fresh(self) -> list[str]:
        """Whole lines written since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._copied)
            content = file.read(1_000_000)
        whole = content[: content.rfind(b"\n") + 1]
        self._copied += len(whole)
        return whole.decode(errors="replace").splitlines()
