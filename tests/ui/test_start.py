"""The dashboard alone, as `python -m ui` starts it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from skyfleet.domain.states import LaunchStage
from tests.ports import free_port
from tests.ui.fake_api import ADMIN, FakeApi, launch
from tests.ui.stack import ROOT, Person, chromium, why_no_browser
from tests.waiting import eventually


@contextmanager
def dashboard(folder: Path, **environment: str) -> Iterator[str]:
    """Start it in a folder that is not the repository, and stop it by the pid that was started."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SKYFLEET_", "STREAMLIT_"))}
    own = {"PYTHONPATH": str(ROOT), "SKYFLEET_DASHBOARD_PORT": str(port), "HOME": str(folder)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ui"],
            cwd=folder,
            env=inherited | own | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/_stcore/health").text == "ok"
        except httpx.TransportError:
            return False

    try:
        asyncio.run(eventually(answers, timeout_s=60, what="the dashboard's health"))
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_it_starts_anywhere_without_asking_or_leaving_anything(tmp_path: Path) -> None:
    with dashboard(tmp_path) as url:
        pass
    written = (tmp_path / "log").read_text()
    assert url in written
    assert "not a valid config option" not in written
    assert list(tmp_path.rglob(".streamlit")) == []


@pytest.mark.browser
@pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))
@pytest.mark.parametrize("path", ["/", "/new", "/launch?job=launch-00000001", "/nodes"])
def test_a_lost_api_is_said_and_the_page_recovers_by_itself(tmp_path: Path, api: FakeApi, path: str) -> None:
    api.launches = [launch("launch-00000001", LaunchStage.QUEUED, reached=set())]
    with (
        dashboard(tmp_path, SKYFLEET_API=api.url, SKYFLEET_DASHBOARD_TOKEN=ADMIN) as url,
        chromium() as browser,
    ):
        person = Person(browser.new_page(), url)
        api.away = True
        person.open(path)
        lost = person.page.get_by_text("The API does not answer.")
        lost.wait_for(timeout=20_000)
        api.away = False
        lost.wait_for(state="hidden", timeout=20_000)
        person.page.get_by_role("heading").first.wait_for()
