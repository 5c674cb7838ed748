"""Turning the pages of a list whose pages the API names by cursor."""

from __future__ import annotations

import streamlit as st


class Pages:
    """The pages of one list that were turned in this session, by the name of the list."""

    def __init__(self, name: str) -> None:
        self._name = f"{name}_cursors"

    @property
    def _cursors(self) -> list[str]:
        return st.session_state.setdefault(self._name, [])  # type: ignore[no-any-return]

    @property
    def cursor(self) -> str | None:
        """What to ask the API for; None for the first page."""
        return self._cursors[-1] if self._cursors else None

    @property
    def number(self) -> int:
        """The page that is shown, from 1."""
        return len(self._cursors) + 1

    def first(self) -> None:
        """Back to the first page: what is listed has changed."""
        self._cursors.clear()

    def controls(self, following: str | None) -> None:
        """Buttons to turn the page; nothing when there is but one. `following` is the cursor of the page after."""
        if self.cursor is None and following is None:
            return
        with st.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center"):
            if st.button(
                "Newer", disabled=self.cursor is None, icon=":material/chevron_left:", key=f"{self._name}-new"
            ):
                self._cursors.pop()
                st.rerun()
            st.markdown(f"Page {self.number}", width="content")
            older = st.button(
                "Older",
                disabled=following is None,
                icon=":material/chevron_right:",
                icon_position="right",
                key=f"{self._name}-old",
            )
            if older and following is not None:
                self._cursors.append(following)
                st.rerun()
