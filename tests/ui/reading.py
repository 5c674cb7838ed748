"""What is on a page, as a person reads it, and pressing what they see."""

from __future__ import annotations

import re

from streamlit.testing.v1 import AppTest


def text(app: AppTest) -> str:
    """Everything that is written on the page, without Markdown's escapes."""
    assert not app.exception, app.exception
    kinds = ("title", "subheader", "markdown", "caption", "error", "warning", "info", "success", "code", "page_link")
    written = [str(item.value) for kind in kinds for item in getattr(app, kind)]
    written += [item.label for item in app.button] + [item.label for item in app.metric]
    written += [str(item.value) for item in app.metric]
    for table in app.table:
        written += [str(cell) for row in table.value.to_numpy().tolist() for cell in row]
    return re.sub(r"\\(.)", r"\1", "\n".join(written))


def labels(app: AppTest) -> list[str]:
    """The buttons that are offered and can be pressed."""
    return [item.label for item in app.button if not item.disabled]


def press(app: AppTest, label: str) -> AppTest:
    """Press the first button of that name."""
    button = next((item for item in app.button if item.label == label), None)
    assert button is not None, f"no button {label!r} among {labels(app)}"
    return button.click().run()
