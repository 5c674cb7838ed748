"""The lock files pin everything that pyproject.toml asks for, by name, version and hash, and name no address."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {path.name: path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt"))}


def pins(lock: str) -> dict[str, str]:
    """Name to version; each entry of a lock is one requirement and its hashes, joined by backslashes."""
    found: dict[str, str] = {}
    for entry in LOCKS[lock].replace("\\\n", " ").splitlines():
        requirement, *hashes = entry.split("--hash=")
        parsed = Requirement(requirement)
        (specifier,) = parsed.specifier
        assert specifier.operator == "==", entry
        assert hashes, f"no hash: {entry}"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", item) for item in hashes), entry
        found[canonicalize_name(parsed.name)] = specifier.version
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_pinned_hashed_names_and_no_address(lock: str) -> None:
    assert pins(lock)
    assert "://" not in LOCKS[lock]
    assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links)\b", LOCKS[lock], re.MULTILINE)
    assert " @ " not in LOCKS[lock]


def listed(name: str) -> list[str]:
    """The requirements in a file that one is compiled from."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


CORE = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("runtime.txt", CORE),
        ("skypilot.txt", [*CORE, *EXTRAS["skypilot"]]),
        ("dev.txt", [*CORE, *EXTRAS["skypilot"], *EXTRAS["dev"]]),
        ("build.txt", PROJECT["build-system"]["requires"]),
        ("lab-vm.txt", listed("lab-vm.in")),
        ("lab-slurm.txt", listed("lab-slurm.in")),
    ],
)
def test_a_lock_satisfies_what_the_project_asks_for(lock: str, wanted: list[str]) -> None:
    pinned = pins(lock)
    for requirement in map(Requirement, wanted):
        if requirement.name == PROJECT["project"]["name"]:  # one of our own extras, listed beside it
            continue
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_locks_agree() -> None:
    """What is tested is what runs, and what builds the wheel in the image is what builds it here."""
    dev = pins("dev.txt")
    assert pins("skypilot.txt").items() <= dev.items()
    assert pins("runtime.txt").items() <= pins("skypilot.txt").items()
    assert pins("build.txt").items() <= dev.items()
    assert pins("lab-vm.txt")["skypilot"] == dev["skypilot"]
