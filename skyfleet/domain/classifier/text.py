"""Preparing a raw error for reading: bounded, unescaped, without what misleads. Nothing here can fail.

Everything is linear in the text: no pattern has nested repetition, and every gap is bounded.
"""

from __future__ import annotations

import html
import re

#: Characters of a long text that are read: the first error is near the head, the last word near the tail.
HEAD_CHARS, TAIL_CHARS = 16_384, 32_768

_ANSI = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]")
_UNICODE_ESCAPE = re.compile(r"\\{1,8}u00([0-7][0-9a-fA-F])")
_ESCAPED_BREAK = re.compile(r"\\{1,8}[nr](?![a-z]{2,}\\)")
_ESCAPED_TAB = re.compile(r"\\{1,8}t")
_ESCAPED_QUOTE = re.compile(r"\\{1,8}([\"'/])")
_URL = re.compile(r"\bhttps?://[^\s\"'<>)\]]{1,2000}")
#: Compute Engine names things by address: what follows the project says which zone and type are meant.
_RESOURCE_PATH = re.compile(r"/(projects/[^?]{1,500})")
#: Wrapped log lines repeat their prefix (`D 10-11 07:21:13 provisioner.py:150] `) in front of every line.
_LOG_PREFIX = re.compile(
    r"^\(?[A-Za-z-]{0,20}[^\S\n]?(?:pid=\d{1,9}\)[^\S\n])?[DIWEF][^\S\n]\d\d-\d\d[^\S\n][\d:.]{5,15}[^\S\n][\w.]{1,60}:\d{1,6}\][^\S\n]?",
    re.MULTILINE,
)

#: What sounds like another error than it is. Each is said beside the cause, never as the cause.
_NOISE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # The Kubernetes scheduler tells what evicting others would have brought.
        r"preemption: \d{1,6}/\d{1,6} nodes are available[^\n]{0,300}",
        r"no preemption victims found[^\n.]{0,80}",
        r"preemption is not helpful[^\n.]{0,80}",
        # botocore counts its own retries in every message.
        r"\(reached max retries: \d{1,4}\)",
        r"encoded authorization failure message: \S{1,4000}",
        # Advice names other places, quotas and types.
        r"(?:please |or |, )?try (?:again |another |a different |your request |using )[^\n.;]{0,200}",
        r"(?:you can|alternatively,?|please) (?:try|consider|also|currently get)[^\n.;]{0,200}",
        r"\(see [^)\n]{0,200}\)",
        r"(?:ensure|verify|make sure|check) that [^\n.]{0,200}",
        r"check resource usage by running [^\n]{0,80}",
        r"request (?:a|an) (?:service limit|quota|limit) increase[^\n]{0,120}",
        # File names of libraries in a traceback.
        r"file \"[^\"\n]{1,300}\", line \d{1,7}(?:, in \S{1,100})?",
    )
)


def bounded(raw: str) -> str:
    """The part of `raw` that is read: all of it, or its head and its tail when it is very long."""
    if len(raw) <= HEAD_CHARS + TAIL_CHARS:
        return raw
    return f"{raw[:HEAD_CHARS]}\n{raw[-TAIL_CHARS:]}"


def unescaped(text: str) -> str:
    """`text` as it read before it was put into JSON (once or several times), HTML, a log or a terminal."""
    text = _ANSI.sub("", text)
    text = _UNICODE_ESCAPE.sub(lambda found: chr(int(found.group(1), 16)), text)
    text = _ESCAPED_BREAK.sub("\n", text)
    text = _ESCAPED_TAB.sub(" ", text)
    text = _ESCAPED_QUOTE.sub(r"\1", text)
    if "&" in text:
        text = html.unescape(text)
    text = text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return _LOG_PREFIX.sub("", text)


def without_urls(text: str) -> str:
    """`text` without addresses, but for the resources they name: a link to the quota page is no quota error."""
    return _URL.sub(_resource_of, text)


def _resource_of(address: re.Match[str]) -> str:
    found = _RESOURCE_PATH.search(address.group())
    return found.group(1) if found else " "


def without_noise(text: str) -> str:
    """`text` without the phrases that tell of something else than the cause."""
    for pattern in _NOISE:
        text = pattern.sub(" ", text)
    return text
