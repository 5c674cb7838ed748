"""Opaque cursors of paged lists."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from decimal import Decimal
from typing import Annotated

from fastapi import Query

from api.problems import ProblemError, refused_field

Limit = Annotated[int, Query(ge=1, le=500, description="Rows a page.")]
Cursor = Annotated[str | None, Query(max_length=300, description="`next` of the page before; not to be made by hand.")]


def encode_cursor(at: datetime, row_id: str) -> str:
    """The cursor of the page that follows this row."""
    return _pack(f"{at.isoformat()}|{row_id}")


def decode_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    """The row that a cursor stands for; a 422 problem if it is none of ours."""
    if cursor is None:
        return None
    moment, row_id = _unpack(cursor)
    try:
        at = datetime.fromisoformat(moment)
    except ValueError:
        raise _not_ours() from None
    if at.tzinfo is None or not 1970 <= at.year <= 9998:
        raise _not_ours()
    return at, row_id


def encode_price(price: Decimal, key: str) -> str:
    """The same for lists in order of a price, and of a key among equal prices."""
    return _pack(f"{price:f}|{key}")


def decode_price(cursor: str | None) -> tuple[Decimal, str] | None:
    """The price and the key that a cursor stands for; a 422 problem if it is none of ours."""
    if cursor is None:
        return None
    amount, key = _unpack(cursor)
    try:
        price = Decimal(amount)
    except ArithmeticError:
        raise _not_ours() from None
    if not price.is_finite():
        raise _not_ours()
    return price, key


def decode_number(cursor: str | None) -> int | None:
    """The same for lists in order of a number."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise _not_ours()
    return int(cursor)


def _pack(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _unpack(cursor: str) -> tuple[str, str]:
    """The two parts of a cursor."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, ValueError):
        raise _not_ours() from None
    if not text.isprintable():
        raise _not_ours()
    first, _, rest = text.partition("|")
    return first, rest


def _not_ours() -> ProblemError:
    return refused_field("cursor", "is not the `next` of a page before")
