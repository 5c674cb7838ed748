"""The architecture's import table holds, covers everything, and would catch a violation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
PACKAGES = CONFIGURATION["root_packages"]
ROOMS = [room for contract in CONFIGURATION["contracts"] for room in contract["room"]]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the tree in `folder`, and on no other that may be importable."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the contracts look at."""
    folder = tmp_path_factory.mktemp("tree")
    for name in (*PACKAGES, "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "worker.py", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_tree_keeps_the_contracts(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_a_room() -> None:
    """A new package is nobody's until it is entered in the table; a package above the rooms holds no imports."""
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)
    outside = {
        module: graph.find_modules_directly_imported_by(module) - {"__future__"}
        for module in graph.modules
        if module.partition(".")[0] in PACKAGES
        and not any(module == room or module.startswith(f"{room}.") for room in ROOMS)
    }
    above = {room.rpartition(".")[0] for room in ROOMS}
    assert set(outside) <= above
    assert not any(outside.values()), outside


@pytest.mark.parametrize(
    ("file", "line", "imported"),
    [
        ("skyfleet/domain/planner.py", "import sqlalchemy", "sqlalchemy"),
        ("skyfleet/domain/ids.py", "from skyfleet import settings", "skyfleet.settings"),
        ("skyfleet/engines/__init__.py", "import httpx", "httpx"),
        ("skyfleet/agent/__init__.py", "import pydantic", "pydantic"),
        ("skyfleet/client.py", "import skyfleet.stack", "skyfleet.stack"),
        ("workflows/__init__.py", "import skyfleet.db.session", "skyfleet.db.session"),
        ("activities/__init__.py", "import worker", "worker"),
        ("api/__init__.py", "from skyfleet.clouds import base", "skyfleet.clouds.base"),
        ("api/__init__.py", "def f():\n    import activities", "activities"),
        ("ui/__init__.py", "from skyfleet.db import tables", "skyfleet.db.tables"),
        ("ui/__init__.py", "import temporalio.client", "temporalio"),
    ],
)
def test_a_violation_is_caught(copy: Path, file: str, line: str, imported: str) -> None:
    importer = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    before = (copy / file).read_text()
    (copy / file).write_text(f"{before}\n{line}\n")
    try:
        done = lint_imports(copy)
    finally:
        (copy / file).write_text(before)
    assert done.returncode != 0
    number = len(before.splitlines()) + 1 + len(line.splitlines())
    assert f"{importer} (l.{number}) may not import {imported}\n" in done.stdout
