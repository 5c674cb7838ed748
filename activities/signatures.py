"""What workflows know of activities: names, one model in, one model out.

The implementations subclass these. Workflows import this module and never an implementation, which would pull the
database and the clouds into Temporal's sandbox.
"""

from __future__ import annotations

from temporalio import activity

from skyfleet.domain import messages as m


class LaunchSteps:
    """The steps of a launch that talk to our own database. Queue: `control`."""

    @activity.defn
    async def validate_launch(self, request: m.ValidateInput) -> m.ValidateResult:
        """Check the launch against the catalog as it is now."""
        raise NotImplementedError

    @activity.defn
    async def plan_launch(self, request: m.PlanInput) -> m.PlanResult:
        """Choose the next offer to try."""
        raise NotImplementedError

    @activity.defn
    async def open_attempt(self, request: m.OpenAttemptInput) -> m.AttemptRef:
        """Write an attempt down, with the name of its machine, before anything is created."""
        raise NotImplementedError

    @activity.defn
    async def close_attempt(self, request: m.CloseAttemptInput) -> m.Done:
        """Give an attempt up: refuse its agent from now on, and remember the place that refused."""
        raise NotImplementedError

    @activity.defn
    async def complete_launch(self, request: m.CompleteInput) -> m.Done:
        """Mark the launch READY."""
        raise NotImplementedError

    @activity.defn
    async def finish_launch(self, request: m.FinishInput) -> m.Done:
        """Mark the launch FAILED or CANCELLED; nothing of it is left in any cloud."""
        raise NotImplementedError


class MachineSteps:
    """What is asked of a cloud. Queue: `provision` for the first, `teardown` for the others."""

    @activity.defn
    async def provision_machine(self, request: m.ProvisionInput) -> m.ProvisionResult:
        """Adopt the machine of that name or create it, and see it run."""
        raise NotImplementedError

    @activity.defn
    async def check_registration(self, request: m.CheckRegistrationInput) -> m.CheckRegistrationResult:
        """Look for a registration whose signal was lost, and whether the machine still exists."""
        raise NotImplementedError

    @activity.defn
    async def terminate_machine(self, request: m.TerminateInput) -> m.TerminateResult:
        """End the machine, and return once the cloud confirms that it is gone."""
        raise NotImplementedError


class NodeSteps:
    """The steps of a node's life that talk to our own database. Queue: `control`."""

    @activity.defn
    async def mark_node(self, request: m.MarkNodeInput) -> m.Done:
        """Write the node's new status; its agent is told with the next heartbeat."""
        raise NotImplementedError

    @activity.defn
    async def request_replacement(self, request: m.ReplacementInput) -> m.ReplacementResult:
        """Write down and start the launch of another node like this one; once for each node."""
        raise NotImplementedError

    @activity.defn
    async def check_replacement(self, request: m.CheckReplacementInput) -> m.CheckReplacementResult:
        """How far the launch of the other node is."""
        raise NotImplementedError

    @activity.defn
    async def check_drain(self, request: m.CheckDrainInput) -> m.CheckDrainResult:
        """Whether a draining node has finished its requests."""
        raise NotImplementedError


class WatchSteps:
    """The fleet watch. Queue: `teardown`, whose workers talk to what is outside."""

    @activity.defn
    async def watch_fleet(self, request: m.WatchInput) -> m.WatchResult:
        """Look at every serving node again and again, for about an hour."""
        raise NotImplementedError


class SweepSteps:
    """The steps of a sweep."""

    @activity.defn
    async def redeliver_intents(self, request: m.SweepInput) -> m.SweepResult:
        """Start launches whose start was lost, deliver commands that did not arrive. Queue: `control`."""
        raise NotImplementedError

    @activity.defn
    async def compare_with_clouds(self, request: m.SweepInput) -> m.SweepResult:
        """End machines that nobody claims, and nodes whose machine is gone. Queue: `teardown`."""
        raise NotImplementedError

    @activity.defn
    async def refresh_catalog(self, request: m.SweepInput) -> m.SweepResult:
        """Read the clouds' offers into the catalog. Queue: `teardown`, whose worker has the clouds."""
        raise NotImplementedError


class CostSteps:
    """What looks after costs. Queue: `control`."""

    @activity.defn
    async def check_budgets(self, request: m.SweepInput) -> m.CheckBudgetsResult:
        """Alert on budgets whose fractions were crossed, and drain what a spent one stops."""
        raise NotImplementedError


class ModelSteps:
    """The model catalog from a bucket. Queue: `teardown`, whose workers talk to what is outside."""

    @activity.defn
    async def refresh_models(self, request: m.RefreshModelsInput) -> m.RefreshModelsResult:
        """Read the bucket into the catalog."""
        raise NotImplementedError


class NotificationSteps:
    """What people are told. Queue: `teardown`, whose workers talk to what is outside."""

    @activity.defn
    async def deliver_notifications(self, request: m.DeliverInput) -> m.DeliverResult:
        """Send what is due, each message to each channel that wants it."""
        raise NotImplementedError

    @activity.defn
    async def test_channel(self, request: m.ChannelTestInput) -> m.ChannelTestResult:
        """Send a test message to one channel now."""
        raise NotImplementedError
