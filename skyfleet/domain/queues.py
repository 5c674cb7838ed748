"""The Temporal task queues, named here alone."""

from __future__ import annotations

from typing import Final

#: Workflows and short activities on our own database.
CONTROL: Final = "control"
#: Creating machines. The concurrency limit of this queue *is* the launch queue.
PROVISION: Final = "provision"
#: Ending machines and looking at them. Apart from `PROVISION`, so that a long launch queue never delays a teardown that
#: stops a bill.
TEARDOWN: Final = "teardown"
