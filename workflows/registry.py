"""All workflows, and the sandbox that they run in: for the worker, for tests and for replays alike."""

from __future__ import annotations

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from workflows.launch import LaunchWorkflow
from workflows.models import ModelRefreshWorkflow
from workflows.node import NodeWorkflow
from workflows.notifications import ChannelTestWorkflow, NotificationWorkflow
from workflows.sweep import SweepWorkflow
from workflows.teardown import TeardownWorkflow
from workflows.watch import FleetWatchWorkflow

WORKFLOWS = [
    ChannelTestWorkflow,
    FleetWatchWorkflow,
    LaunchWorkflow,
    ModelRefreshWorkflow,
    NodeWorkflow,
    NotificationWorkflow,
    SweepWorkflow,
    TeardownWorkflow,
]

#: What workflows import of our own is pure code and signatures; importing the pydantic models anew for every workflow
#: would cost milliseconds each and gain nothing.
SANDBOX = SandboxedWorkflowRunner(
    restrictions=SandboxRestrictions.default.with_passthrough_modules(
        "skyfleet", "activities", "workflows", "pydantic", "pydantic_core"
    )
)
