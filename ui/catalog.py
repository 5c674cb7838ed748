"""Models and offers as the API lists them, remembered for half a minute in each session."""

from __future__ import annotations

import streamlit as st

from skyfleet.domain.views import ModelView, OfferView
from ui import session

_TTL_S = 30
_PAGE = 2_000  # as many as the API gives at once


def models() -> list[ModelView]:
    """The model catalog, by name. Raises `ApiError` and `ApiUnreachable`."""
    return _models(session.api_url())


def offers(model_name: str) -> list[OfferView]:
    """What the clouds sell, cheapest first, and whether it fits that model. Raises `ApiError` and `ApiUnreachable`."""
    return _offers(session.api_url(), model_name)


@st.cache_data(scope="session", ttl=_TTL_S, show_spinner=False)
def _models(url: str) -> list[ModelView]:
    return sorted(session.client().models(), key=lambda item: item.name.lower())


@st.cache_data(scope="session", ttl=_TTL_S, show_spinner=False, max_entries=20)
def _offers(url: str, model_name: str) -> list[OfferView]:
    found: list[OfferView] = []
    cursor: str | None = None
    while True:
        page = session.client().offers(model_name=model_name, cursor=cursor, limit=_PAGE)
        found += page.offers
        cursor = page.next
        if cursor is None:
            return found


def forget() -> None:
    """Ask the API anew next time."""
    _models.clear()
    _offers.clear()
