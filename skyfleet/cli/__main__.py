"""`python -m skyfleet.cli` is the same as `skyfleet`."""

from __future__ import annotations

from skyfleet.cli.main import run

run()
