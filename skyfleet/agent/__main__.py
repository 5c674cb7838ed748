"""`python -m skyfleet.agent`, the same as `python node-agent.pyz`."""

from __future__ import annotations

import sys

from skyfleet.agent.main import main

sys.exit(main(sys.argv[1:]))
