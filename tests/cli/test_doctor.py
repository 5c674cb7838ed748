"""`skyfleet doctor`, where nothing runs, and against an API elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response
from typer.testing import CliRunner, Result

from skyfleet import client as client_module
from skyfleet.cli.main import app
from skyfleet.client import Endpoints
from skyfleet.domain.doctor import DoctorReport, note, ok
from skyfleet.stack import doctor as local
from skyfleet.stack.folder import DataFolder
from tests.cli.fake_api import FakeApi, problem, served
from tests.ports import free_port


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No stack, no SkyPilot server, and a data folder that is not there yet."""
    data = tmp_path / "not yet" / "skyfleet"
    monkeypatch.setenv("SKYFLEET_DATA", str(data))
    monkeypatch.setattr(client_module, "DEFAULT_API", f"http://127.0.0.1:{free_port()}")
    for name in ("SKYFLEET_API", "SKYFLEET_TOKEN", "SKYFLEET_ADMIN_TOKEN", "SKYPILOT_API_SERVER_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SKYPILOT_API_SERVER_LOCAL_PORT", str(free_port()))
    monkeypatch.setenv("SKYPILOT_GLOBAL_CONFIG", str(tmp_path / "no-config.yaml"))
    return data


def doctor(*options: str) -> Result:
    return CliRunner().invoke(app, [*options, "doctor", "--json"])


def checks(result: Result) -> dict[str, dict[str, Any]]:
    (line,) = result.stdout.splitlines()
    return {check["name"]: check for check in json.loads(line)["checks"]}


def test_where_nothing_runs_it_says_how_to_start(nothing_runs: Path) -> None:
    result = doctor()
    assert result.exit_code == 1
    found = checks(result)
    assert found["api"]["status"] == "failed"
    assert "skyfleet up" in found["api"]["mend"]
    assert found["skypilot server"]["detail"] == "none runs here; `skyfleet up --cloud skypilot` starts one"
    assert found["data folder"]["status"] in ("ok", "warning", "failed")
    assert found["admin token here"]["status"] == "note"
    assert not nothing_runs.exists(), "a look changes nothing"


def test_people_read_a_table(nothing_runs: Path) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "HOW TO MEND IT" in result.stdout
    assert result.stdout.splitlines()[-1] == "to mend: api"


def test_a_stack_that_was_killed_is_named_with_what_is_left_of_it(nothing_runs: Path) -> None:
    folder = DataFolder(nothing_runs)
    folder.admin_token()
    folder.remember_children({"api": os.getpid()})
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    folder.write_endpoints(
        Endpoints(
            api=f"http://127.0.0.1:{free_port()}", admin_token="t", pids={"api": os.getpid(), "worker": ended.pid}
        )
    )
    found = checks(doctor())
    assert found["api"]["status"] == "failed"
    assert found["processes"]["detail"] == "not running: worker"
    assert str(nothing_runs / "logs" / "worker.log") in found["processes"]["mend"]
    assert found["admin token here"]["status"] == "ok"


def test_an_api_on_this_machine_that_is_no_stack_of_ours_is_asked_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Response] = [JSONResponse(DoctorReport.of([ok("database", "there")]).model_dump(mode="json"))]
    with served(FakeApi(answers=answers)) as url:
        monkeypatch.setattr(client_module, "DEFAULT_API", url)
        assert set(checks(doctor())) == {"command", "database"}


def test_an_api_elsewhere_is_asked_and_this_machine_left_out() -> None:
    report = DoctorReport.of([ok("database", "PostgreSQL 18.1"), note("real clouds", "not used")])
    answers: list[Response] = [
        JSONResponse(report.model_dump(mode="json")),
        problem(403, "the role `admin` is needed for this"),
    ]
    with served(FakeApi(answers=answers)) as url:
        result = doctor("--api", url, "--token", "sf_key")
        assert result.exit_code == 0, result.output
        assert set(checks(result)) == {"command", "database", "real clouds"}
        result = doctor("--api", url, "--token", "sf_key")
        assert result.exit_code == 1
        assert "role admin" in checks(result)["api"]["mend"]


@pytest.mark.parametrize(("free", "status"), [(50, "ok"), (3, "warning"), (0.5, "failed")])
def test_space_for_the_databases(free: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        total = used = 0
        free: int

    Usage.free = int(free * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    (found,) = [check for check in local.examine(tmp_path, None) if check.name == "data folder"]
    assert found.status.value == status
