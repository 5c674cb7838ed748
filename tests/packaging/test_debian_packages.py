"""The script that installs Debian packages, on stand-ins for Debian's tools: what is missing, and what it cannot do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "debian-packages.sh"


class Machine:
    """A folder of programs that stands for a Debian machine with `present` installed; the script sees nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        self.program("dpkg-query", 'for name; do :; done; case "$name" in present) printf installed;; *) exit 1;; esac')

    def program(self, name: str, body: str) -> None:
        """Put a program on the machine; it notes its call, then does `body`."""
        file = self.folder / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.calls}"\n{body}\n')
        file.chmod(0o755)

    def run(self, *arguments: str, root: bool) -> subprocess.CompletedProcess[str]:
        """Run the script, as root or not (bash lets no script set EUID, so it is written into a copy)."""
        copy = self.folder / "script"
        text = SCRIPT.read_text()
        assert "EUID" in text
        copy.write_text(text.replace("EUID", "0" if root else "1000"))
        return subprocess.run(
            ["/bin/bash", str(copy), *arguments],
            env={"PATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    def called(self, name: str) -> list[str]:
        """The arguments of each call of a program."""
        lines = self.calls.read_text().splitlines()
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_done_when_all_is_there(machine: Machine) -> None:
    machine.program("apt-get", "exit 1")
    assert machine.run("present", root=True).returncode == 0
    assert machine.called("apt-get") == []


def test_root_installs_what_is_missing(machine: Machine) -> None:
    machine.program("apt-get", "")
    assert machine.run("--optional", "present", "absent", root=True).returncode == 0
    update, install = machine.called("apt-get")
    assert " update " in update
    assert " install " in install
    assert install.endswith(" absent")
    assert all("-o DPkg::Lock::Timeout=" in call for call in (update, install))


def test_sudo_is_used_by_others(machine: Machine) -> None:
    machine.program("apt-get", "")
    machine.program("sudo", "")
    assert machine.run("absent", root=False).returncode == 0
    last = machine.called("sudo")[-1]
    assert last.startswith("apt-get ")
    assert " install " in last


def test_a_failed_installation_is_a_failure_even_if_optional(machine: Machine) -> None:
    machine.program("apt-get", "exit 100")
    assert machine.run("--optional", "absent", root=True).returncode == 100


@pytest.mark.parametrize(("arguments", "status"), [(["--optional", "absent"], 0), (["absent"], 1)])
@pytest.mark.parametrize("sudo", ["none", "asks for a password"])
def test_without_rights_it_says_so(machine: Machine, arguments: list[str], status: int, sudo: str) -> None:
    machine.program("apt-get", "")
    if sudo != "none":
        machine.program("sudo", "exit 1")
    done = machine.run(*arguments, root=False)
    assert done.returncode == status
    assert "not installed: absent (needs root, or sudo without a password)" in done.stderr
    assert ("will be skipped" in done.stderr) == (status == 0)
    assert machine.called("apt-get") == []


def test_another_system_is_told_from_debian(machine: Machine) -> None:
    done = machine.run("--optional", "absent", root=True)
    assert done.returncode == 0
    assert "not a Debian system" in done.stderr
