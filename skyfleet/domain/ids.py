"""Every id in the system, and nothing else makes ids.

Workflow ids, cluster names and node ids are derived from their subject, so that starting, creating or
registering twice is doing it once.
"""

from __future__ import annotations

import re
import secrets
from datetime import datetime

_LAUNCH_ID = re.compile(r"launch-[0-9a-f]{8,32}")

#: Ids of models: as on a hub, or the path below a bucket's prefix.
MODEL_ID = r"^[A-Za-z0-9][A-Za-z0-9._/:@+-]*$"
MODEL_ID_CHARS = 200


def new_launch_id() -> str:
    """A fresh launch id: `launch-` and 48 random bits in hex."""
    return f"launch-{secrets.token_hex(6)}"


def is_launch_id(text: str) -> bool:
    """Whether `text` has the form of a launch id."""
    return _LAUNCH_ID.fullmatch(text) is not None


def is_model_id(text: str) -> bool:
    """Whether a model can have that id."""
    return len(text) <= MODEL_ID_CHARS and re.fullmatch(MODEL_ID, text) is not None


def launch_workflow_id(launch_id: str) -> str:
    """Id of the `LaunchWorkflow` that owns the launch."""
    return f"launch/{launch_id}"


def node_workflow_id(node_id: str) -> str:
    """Id of the `NodeWorkflow` that owns the node."""
    return f"node/{node_id}"


def teardown_workflow_id(cluster_name: str) -> str:
    """Id of the `TeardownWorkflow` that ends a machine which nothing else owns."""
    return f"teardown/{cluster_name}"


#: Id of the Temporal Schedule that runs `SweepWorkflow`, and the prefix of its runs.
SWEEP_SCHEDULE_ID = "sweep"


#: Id of the `FleetWatchWorkflow`, of which there is one.
WATCH_WORKFLOW_ID = "fleet-watch"


def recheck_workflow_id(asked_at: datetime) -> str:
    """Id of the sweep that checks the clouds because somebody asked then."""
    return f"recheck/{asked_at:%Y%m%dT%H%M%S.%f}"


#: Id of the Temporal Schedule that runs `ModelRefreshWorkflow`, and the prefix of its runs.
MODELS_SCHEDULE_ID = "models"

#: Id of the Temporal Schedule that runs `NotificationWorkflow`, and the prefix of its runs.
NOTIFICATIONS_SCHEDULE_ID = "notifications"


def channel_test_workflow_id(channel_id: str, nonce: str) -> str:
    """Id of one test of a notification channel; each is a run of its own."""
    return f"channel-test/{channel_id}/{nonce}"


def cluster_name(launch_id: str, attempt: int) -> str:
    """The name under which a cloud knows the machine of one attempt: letters, digits and dashes, under 35 characters.

    35 is the tightest limit among the clouds that SkyPilot names clusters on (GCP: 63 less its own suffixes).
    """
    return f"sf-{_suffix(launch_id)}-{attempt}"


def node_id(launch_id: str, attempt: int) -> str:
    """Id of the node that the attempt would become."""
    return f"node-{_suffix(launch_id)}-{attempt}"


def _suffix(launch_id: str) -> str:
    return launch_id.removeprefix("launch-")


def new_secret() -> str:
    """A fresh 256-bit secret, URL-safe; for registration tokens, heartbeat keys and API keys."""
    return secrets.token_urlsafe(32)


def new_api_key_id() -> str:
    """Public part of an API key, by which it is found and named in the audit log."""
    return secrets.token_hex(6)


def new_channel_id() -> str:
    """A fresh id of a notification channel: `channel-` and 48 random bits in hex."""
    return f"channel-{secrets.token_hex(6)}"


def new_budget_id() -> str:
    """Id of a budget, which outlives a change of all else."""
    return f"budget-{secrets.token_hex(6)}"
