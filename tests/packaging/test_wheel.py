"""The wheel ships every room with its data, and works away from the source tree."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import asyncpg
import pytest

from tests.postgres import TestServer

ROOT = Path(__file__).parents[2]
ROOMS = ("skyfleet", "workflows", "activities", "api", "ui")


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed; the source tree is on none of its paths."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SKYFLEET_"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network by the locked back-end."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an environment with the wheel, which borrows the dependencies of ours but not its path to the tree."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A folder that comes from a .pth file is searched for modules, but its own .pth files are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    uv = Path(sys.executable).with_name("uv")
    run([uv, "pip", "install", "--offline", "--no-deps", "--python", folder / "bin" / "python", wheel], folder)
    return folder


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    """Every file of the rooms that git knows or would take is in the wheel, and nothing else is at its top level."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS, "worker.py"], ROOT)
    files = {line for line in listed.splitlines() if (ROOT / line).exists()}
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert shipped == files
    assert {
        "worker.py",
        "skyfleet/py.typed",
        "skyfleet/clouds/local/default.toml",
        "skyfleet/stack/models.toml",
        "skyfleet/db/migrations/script.py.mako",
        "skyfleet/db/migrations/env.py",
        "skyfleet/db/migrations/versions/0001_launch_tables.py",
    } <= shipped


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (licence,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()


def test_every_module_imports_from_the_wheel(wheel: Path, installed: Path, tmp_path: Path) -> None:
    # A module named __main__, and a Streamlit page, is run and not imported; migrations are Alembic's to load.
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in zipfile.ZipFile(wheel).namelist()
        if name.endswith(".py") and "/migrations/" not in name and not name.endswith("__main__.py")
        and not name.startswith(("ui/app", "ui/rooms/"))
    )  # fmt: skip
    assert {"api", "workflows.launch", "activities", "worker", "skyfleet.cli.main"} <= set(modules)
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    module = importlib.import_module(name)\n"
        "    assert module.__file__.startswith(sys.prefix), module.__file__\n"
        "print(len(sys.argv) - 1, flush=True)\n"
        "from skyfleet.exit import leave; leave(0)\n"
    )
    assert int(run([installed / "bin" / "python", "-c", program, *modules], tmp_path)) == len(modules)


def test_the_command_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "skyfleet"
    assert "0.1.0" in run([command, "version"], tmp_path)
    assert "launch" in run([command, "--help"], tmp_path)


async def test_the_migrations_run_from_the_wheel(installed: Path, postgres_server: TestServer, tmp_path: Path) -> None:
    async with postgres_server.database(migrated=False) as url:
        command: list[str | Path] = [installed / "bin" / "python", "-m", "skyfleet.db.migrate"]
        await asyncio.to_thread(run, command, tmp_path, SKYFLEET_DATABASE_URL=url)
        connection = await asyncpg.connect(url)
        try:
            assert await connection.fetchval("SELECT count(*) FROM launches") == 0
        finally:
            await connection.close()


@pytest.mark.slow
def test_the_runtime_lock_is_enough(wheel: Path, tmp_path: Path) -> None:
    """What the image does: the runtime lock with its hashes, then the wheel, and nothing from the dev lock."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    lock = ROOT / "requirements" / "runtime.txt"
    run([uv, "pip", "install", "--require-hashes", "--python", python, "-r", lock], tmp_path)
    run([uv, "pip", "install", "--offline", "--no-deps", "--python", python, wheel], tmp_path)
    run([uv, "pip", "check", "--python", python], tmp_path)
    program = "import api, activities, ui, worker, workflows.launch\nfrom skyfleet.exit import leave; leave(0)"
    run([python, "-c", program], tmp_path)
    assert "0.1.0" in run([tmp_path / "venv" / "bin" / "skyfleet", "version"], tmp_path)
