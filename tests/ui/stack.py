"""The whole stack as a person starts it, and a browser in front of its dashboard."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from skyfleet.client import Endpoints, SkyfleetClient

ROOT: Final = Path(__file__).parent.parent.parent
CHROMIUM: Final = Path("/usr/bin/chromium")
CHROMIUM_ARGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: Two regions of one cloud, and one of another; machines take long enough to come up that stages can be watched.
WORLD: Final = """
mode = "process"
provisioning_delay_s = {delay_s}
capacity = {{ spot = 8, on_demand = 8 }}

[clouds.aws.regions]
us-east-1 = {{ zones = ["us-east-1a"] }}
us-west-2 = {{ zones = ["us-west-2a"] }}

[clouds.aws.types."g5.xlarge"]
vcpus = 4
memory_gb = 16
gpu = "A10G"
gpu_count = 1
gpu_memory_gb = 24
on_demand = "1.006"
spot = "0.4024"

[clouds.aws.types."g4dn.xlarge"]
vcpus = 4
memory_gb = 16
gpu = "T4"
gpu_count = 1
gpu_memory_gb = 16
on_demand = "0.526"
spot = "0.2104"

[clouds.azure.regions]
eastus = {{}}

[clouds.azure.types."Standard_NV36ads_A10_v5"]
vcpus = 36
memory_gb = 440
gpu = "A10"
gpu_count = 1
gpu_memory_gb = 24
# So long that somebody is surely faster, however slow the browser.
provisioning_delay_s = 300
on_demand = "3.20"
spot = "0.64"
"""


class Stack:
    """A running `skyfleet up`."""

    def __init__(self, endpoints: Endpoints) -> None:
        assert endpoints.dashboard is not None
        assert endpoints.local_cloud is not None
        self.endpoints = endpoints
        self.dashboard = endpoints.dashboard
        self.cloud = endpoints.local_cloud

    def client(self) -> SkyfleetClient:
        """The API, as the administrator."""
        return SkyfleetClient(self.endpoints.api, self.endpoints.admin_token)

    def set_capacity(self, capacity: int | None, **place: str) -> None:
        """How many machines the local cloud has there."""
        httpx.put(f"{self.cloud}/v1/capacity", json={**place, "capacity": capacity}).raise_for_status()

    def running(self) -> list[dict[str, Any]]:
        """Machines that the cloud's own ledger has as not terminated."""
        ledger = httpx.get(f"{self.cloud}/v1/ledger").raise_for_status().json()
        return [row for row in ledger if row["state"] != "terminated"]


@contextmanager
def skyfleet_up(folder: Path, world: str) -> Iterator[Stack]:
    """Start the stack on a folder of its own and stop it cleanly afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "world.toml"
    config.write_text(world)
    data = folder / "data"
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "skyfleet.cli", "up", "--data", data, "--cloud-config", config, "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("SKYFLEET_")},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"`skyfleet up` ended: {(folder / 'up.log').read_text()}"
            assert json.loads(line)["healthy"] is True, line
            yield Stack(Endpoints.model_validate_json((data / "endpoints.json").read_bytes()))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        try:
            yield browser
        finally:
            browser.close()


def why_no_browser() -> str | None:
    """Why browser tests cannot run here; None if they can."""
    return None if shutil.which(str(CHROMIUM)) else f"{CHROMIUM} is not installed (Debian package chromium)"


class Person:
    """Somebody in front of the dashboard: clicks what a person would, waits for what a person would see."""

    def __init__(self, page: Page, dashboard: str) -> None:
        self.page = page
        self.dashboard = dashboard

    def open(self, path: str = "/") -> None:
        """Go to a room by its address."""
        self.page.goto(self.dashboard + path)
        self.settled()

    def settled(self) -> None:
        """Wait until Streamlit has drawn the page."""
        self.page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()

    def click(self, name: str) -> None:
        """Press a button by its name."""
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def sees(self, text: str, *, timeout_s: float = 20) -> None:
        """Wait until that text is there to be read."""
        self.page.get_by_text(text).first.wait_for(timeout=timeout_s * 1000)

    def select(self, label: str, option: str) -> None:
        """Choose in a select box."""
        self.page.get_by_role("combobox", name=label).click()
        self.page.get_by_role("option", name=option, exact=True).click()
        self.settled()

    def form_up_to_review(self, *, model: str, provider: str, region: str, instance_type: str) -> None:
        """The three steps: spot at one place, falling back to other regions."""
        self.open("/new")
        self.click(f"Choose {model}")
        self.sees("Where, and how, may it run?")
        self.page.get_by_text("Spot", exact=True).click()
        self.select("Provider", provider)
        self.select("Region", region)
        self.click("Choose an instance")
        self.sees("On which machine?")
        self.click(f"Choose {instance_type}")
        self.sees("The same from a terminal")
        self.settled()

    def launch(self) -> str:
        """Launch what is under review; the id of the launch."""
        self.click("Launch")
        self.page.wait_for_url("**/launch?job=launch-*")
        self.sees("Stages")
        return self.page.url.partition("job=")[2]
