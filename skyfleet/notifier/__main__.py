"""The process that sends: one request on standard input, a line for each result on standard output.

`{"check": URL}` answers `{"service"}` or `{"error"}`. `{"send": [{"channel_id", "url", "messages": [{"id", "title",
"body", "severity"}]}], "seconds": S}` answers `{"id", "state", "error"}` for each message as soon as it is known; one
that has no line was not answered in time. Channels are served side by side, the messages of one in their order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

#: Services that do something to this machine instead of sending: desktop pop-ups, and lamps on its USB port.
LOCAL: Final = frozenset({"blink1", "dbus", "gio", "glib", "gnome", "kde", "macosx", "qt", "windows"})

#: No message is begun with less time than this left: it would be cut off in the middle, and sent again.
_LEAST_SECONDS: Final = 2.0
_CHANNELS_AT_ONCE: Final = 16

#: What no service has to do to send a message. apprise's own list of services grows; this holds for those to come.
_FORBIDDEN: Final = frozenset(
    {
        *(
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.fork",
            "os.forkpty",
            "os.posix_spawn",
            "os.spawn",
            "pty.spawn",
        ),
        *("ctypes.dlopen", "os.startfile", "webbrowser.open", "sqlite3.connect"),
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    }
)
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _readable() -> tuple[str, ...]:
    """Folders and files that sending reads: Python, its libraries, certificates and time zones."""
    verify = ssl.get_default_verify_paths()
    named = [os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")]
    paths = [sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(__file__).parents[1])]
    paths += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    paths += ["/etc/ssl", "/etc/pki", "/usr/share/ca-certificates", "/usr/share/zoneinfo", "/etc/localtime"]
    paths += ["/etc/mime.types", verify.cafile or "", verify.capath or "", *(path or "" for path in named)]
    return tuple({os.path.realpath(path) for path in paths if path})


def forbid_what_sending_does_not_need() -> None:
    """From here on this process starts no program, and reads and writes no file of this machine's but libraries.

    An address can name files (`?template=`, `?keyfile=`) and, in apprise's versions to come, who knows what else.
    """
    readable = _readable()

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN:
            raise PermissionError(f"a notification may not do this: {event}")
        if event == "open" and not isinstance(arguments[0], int):
            path, mode, flags = arguments
            if path == os.devnull:
                return
            writes = (mode and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITING)
            real = os.path.realpath(os.fsdecode(path))
            if writes or not any(real == one or real.startswith(one.rstrip("/") + "/") for one in readable):
                raise PermissionError("a notification may not open this file")

    sys.addaudithook(check)


class _Said(logging.Handler):
    """What apprise logs in each thread: its calls answer yes or no, and the log says why."""

    _CAUSE = re.compile(
        r"(\[Errno -?\d+\] [\w ]+|read timed out|connect timeout|certificate verify failed)", re.IGNORECASE
    )

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._lines = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        lines = getattr(self._lines, "lines", None)
        if lines is None:
            return
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            lines.append(text)
        elif text.startswith("Socket Exception") and (cause := self._CAUSE.search(text)):
            lines.append(cause[1])

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[str]]:
        """The lines of this thread from here on."""
        lines: list[str] = []
        self._lines.lines = lines
        try:
            yield lines
        finally:
            self._lines.lines = None


def _scheme(url: str) -> str:
    return url.strip().partition("://")[0].lower()


class Notifier:
    """apprise, with what it may not do."""

    def __init__(self) -> None:
        import apprise

        self._apprise = apprise
        self._said = _Said()
        logger = logging.getLogger("apprise")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(self._said)
        self._asset = apprise.AppriseAsset(
            app_id="Skyfleet",
            app_desc="Skyfleet",
            app_url="",
            storage_mode="memory",
            pgp_autogen=False,
            pem_autogen=False,
            http_redirects=False,  # a receiver does not choose what else we call
            async_mode=False,
        )
        apprise.Apprise.instantiate("json://127.0.0.1", asset=self._asset)  # loads all services
        forbid_what_sending_does_not_need()

    def service(self, url: str) -> tuple[Any, str]:
        """The service behind an address, or None and why there is none."""
        found: Any = None
        with self._said.listening() as lines:
            try:
                # Never `Apprise.add`, which would read configuration files, local or remote, that a URL names.
                found = self._apprise.Apprise.instantiate(url, asset=self._asset, suppress_exceptions=False)
            except Exception as error:
                return None, str(error) or type(error).__name__
        scheme = _scheme(url)
        if scheme in LOCAL or (found is not None and _scheme(found.url()) in LOCAL):
            return None, f"{scheme}:// shows something on the worker's own machine, and is not allowed"
        if found is None:
            return None, "; ".join(lines) or "no service has such an address"
        return found, ""

    def send(self, channel: dict[str, Any], ends: float, tell: Any) -> None:
        """The messages of one channel, one after the other, until one fails or the time is over."""
        messages = iter(channel["messages"])
        found, error = self.service(channel["url"])
        if found is None:
            for message in messages:
                tell({"id": message["id"], "state": "failed", "error": error})
            return
        for message in messages:
            if time.monotonic() > ends - _LEAST_SECONDS:
                tell({"id": message["id"], "state": "not_tried", "error": ""})
                continue
            refusal = self._send(found, message)
            if refusal is None:
                tell({"id": message["id"], "state": "sent", "error": ""})
                continue
            tell({"id": message["id"], "state": "failed", "error": refusal})
            for later in messages:
                tell({"id": later["id"], "state": "not_tried", "error": refusal})

    def _send(self, found: Any, message: dict[str, Any]) -> str | None:
        kinds = {"info": "info", "warning": "warning", "critical": "failure"}
        with self._said.listening() as lines:
            try:
                done = found.notify(
                    title=message["title"],
                    body=message["body"],
                    notify_type=self._apprise.NotifyType(kinds[message["severity"]]),
                    body_format=self._apprise.NotifyFormat.TEXT,
                )
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return None if done else "; ".join(lines) or "the service did not take it"


def main() -> None:
    """Read the request, answer it, and end: whatever still hangs ends with the process."""
    sys.dont_write_bytecode = True
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a service prints is no answer
    writing = threading.Lock()

    def tell(answer: dict[str, Any]) -> None:
        with writing:
            try:
                answers.write(json.dumps(answer) + "\n")
            except OSError:  # nobody waits for it any more: send no more of what nobody would know to be sent
                os._exit(1)

    notifier = Notifier()
    if "check" in request:
        found, error = notifier.service(request["check"])
        tell({"error": error} if found is None else {"service": str(found.service_name)})
    else:
        ends = time.monotonic() + request["seconds"]
        with contextlib.suppress(TimeoutError):
            pool = ThreadPoolExecutor(_CHANNELS_AT_ONCE)
            wait([pool.submit(notifier.send, channel, ends, tell) for channel in request["send"]], request["seconds"])
    os._exit(0)


if __name__ == "__main__":
    main()
