"""Make `docs/images/`: the dashboard over a real stack, wide and narrow, light and dark.

    python scripts/screenshots.py [FOLDER]

Starts `skyfleet up` on a folder of its own, launches a model whose first region has no spot capacity, and takes the
pages as they are then. Nothing is drawn by hand.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, ViewportSize

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.ui.stack import WORLD, Person, Stack, chromium, skyfleet_up, why_no_browser  # noqa: E402

_WIDE: Final[ViewportSize] = {"width": 1280, "height": 960}
_PHONE: Final[ViewportSize] = {"width": 390, "height": 844}
_MODEL: Final = "meta-llama/Llama-3.1-8B-Instruct"


def person(browser: Browser, stack: Stack, viewport: ViewportSize, scheme: str) -> Person:
    """A browser of that width and colour scheme."""
    context = browser.new_context(
        viewport=viewport,
        color_scheme="dark" if scheme == "dark" else "light",
        timezone_id="Europe/Berlin",
        has_touch=viewport is _PHONE,
    )
    return Person(context.new_page(), stack.dashboard)


def take(someone: Person, folder: Path, name: str) -> None:
    """One picture of what is on the screen."""
    someone.settled()
    someone.page.evaluate("document.activeElement && document.activeElement.blur()")
    someone.page.mouse.move(0, 0)
    someone.page.wait_for_timeout(400)  # transitions of the style sheet, which nothing else shows
    someone.page.screenshot(path=folder / f"{name}.png")


def main(folder: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        skyfleet_up(Path(scratch), WORLD.format(delay_s=6)) as stack,
        chromium() as browser,
    ):
        stack.set_capacity(0, cloud="aws", region="us-east-1", market="spot")
        wide = person(browser, stack, _WIDE, "light")
        wide.open()
        take(wide, folder, "launches-empty")
        wide.open("/new")
        take(wide, folder, "launch-1-model")
        wide.form_up_to_review(
            model="Llama 3.1 8B Instruct", provider="aws", region="us-east-1", instance_type="g5.xlarge"
        )
        take(wide, folder, "launch-4-review")
        for step, name in (("✓ 3 · Instance", "launch-3-instance"), ("✓ 2 · Configuration", "launch-2-configuration")):
            wide.click(step)
            take(wide, folder, name)
        wide.click("Choose an instance")
        wide.sees("On which machine?")
        wide.click("✓ Choose g5.xlarge")
        wide.sees("The same from a terminal")
        job_id = wide.launch()
        wide.sees("no capacity")
        wide.sees("45 %")
        take(wide, folder, "launch-live")
        wide.sees("The node answers", timeout_s=60)
        with stack.client() as client:
            # Others, so that the list has something to list.
            body = {"model_name": _MODEL, "use_spot": True}
            pinned = {**body, "provider": "aws", "region": "us-east-1", "instance_type": "g5.xlarge"}
            failed = client.launch(pinned).job_id
            cancelled = client.launch(body).job_id
            client.cancel(cancelled)
            for launch in (failed, cancelled):
                list(client.events(launch))
            client.launch({**body, "provider": "azure"})
        for scheme in ("light", "dark"):
            for viewport, width in ((_WIDE, ""), (_PHONE, "-phone")):
                someone = person(browser, stack, viewport, scheme)
                shade = "-dark" if scheme == "dark" else ""
                rooms = (
                    ("/", "launches", job_id),
                    (f"/launch?job={job_id}", "launch-ready", "The node answers"),
                    (f"/launch?job={failed}", "launch-failed", "What to try"),
                    ("/nodes", "nodes", "Terminate…"),
                    ("/new", "launch-1-model", "Choose Llama 3.1 8B Instruct"),
                )
                for path, name, text in rooms:
                    someone.open(path)
                    someone.sees(text)
                    take(someone, folder, f"{name}{width}{shade}")
                someone.page.context.close()


if __name__ == "__main__":
    missing = why_no_browser()
    if missing:
        sys.exit(missing)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
