"""Fixtures of the dashboard's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from streamlit.testing.v1 import AppTest

from skyfleet.domain.states import Market
from tests.ui.fake_api import ADMIN, LLAMA, FakeApi, model, offer, serve
from tests.ui.stack import ROOT

Open = Callable[..., AppTest]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """A control plane with two models and offers on two clouds, and nothing launched."""
    fake = FakeApi(
        models=[model(LLAMA, 20.0), model("Qwen/Qwen2.5-0.5B", 1.2, family="qwen", size="0.5B")],
        offers=[
            offer("aws", "us-west-2", "g5.xlarge", "0.38", Market.SPOT),
            offer("aws", "us-east-1", "g5.xlarge", "0.4024", Market.SPOT),
            offer("aws", "us-east-1", "g4dn.xlarge", "0.526", gb=16),
            offer("azure", "eastus", "Standard_NV36ads_A10_v5", "0.64", Market.SPOT),
            offer("aws", "us-east-1", "g5.xlarge", "1.006"),
            offer("aws", "us-west-2", "g5.xlarge", "1.006"),
            offer("azure", "eastus", "Standard_NV36ads_A10_v5", "3.20"),
        ],
    )
    with serve(fake.app()) as fake.url:
        yield fake


@pytest.fixture
def open_room(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens a room as somebody with a key (None: nobody yet), with query parameters."""

    def opened(room: str | None = None, token: str | None = ADMIN, **query: str) -> AppTest:
        monkeypatch.setenv("SKYFLEET_API", api.url)
        if token is None:
            monkeypatch.delenv("SKYFLEET_DASHBOARD_TOKEN", raising=False)
        else:
            monkeypatch.setenv("SKYFLEET_DASHBOARD_TOKEN", token)
        app = AppTest.from_file(str(ROOT / "ui" / "app.py"), default_timeout=30)
        if room is not None:
            app.run()
            app.switch_page(f"rooms/{room}.py")
        for name, value in query.items():
            app.query_params[name] = value
        return app.run()

    return opened
