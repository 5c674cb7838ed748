"""Opaque cursors of paged lists."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated

from fastapi import Query

from api.problems import ProblemError, refused_field

Limit = Annotated[int, Query(ge=1, le=500, description="Rows a page.")]
Cursor = Annotated[str | None, Query(max_length=300, description="`next` of the page before; not to be made by hand.")]


def encode_cursor(at: datetime, row_id: str) -> str:
    """The cursor of the page that follows this row."""
    return base64.urlsafe_b64encode(f"{at.isoformat()}|{row_id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    """The row that a cursor stands for; a 422 problem if it is none of ours."""
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        moment, _, row_id = text.partition("|")
        at = datetime.fromisoformat(moment)
    except (binascii.Error, ValueError):
        raise _not_ours() from None
    if at.tzinfo is None or not row_id.isprintable() or not 1970 <= at.year <= 9998:
        raise _not_ours()
    return at, row_id


def decode_number(cursor: str | None) -> int | None:
    """The same for lists in order of a number."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise _not_ours()
    return int(cursor)


def _not_ours() -> ProblemError:
    return refused_field("cursor", "is not the `next` of a page before")
