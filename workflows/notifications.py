"""`NotificationWorkflow`, run by a Temporal Schedule of its own, and `ChannelTestWorkflow`, because somebody asked."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.signatures import NotificationSteps
    from skyfleet.domain import messages as m
    from workflows import options


@workflow.defn(name="NotificationWorkflow")
class NotificationWorkflow:
    """One delivery of what people are to be told. Apart from the sweep, which no slow receiver may hold up."""

    @workflow.run
    async def run(self, request: m.DeliverInput) -> m.DeliverResult:
        """Deliver; what fails is left to the next run, which is only seconds away."""
        return await workflow.execute_activity_method(
            NotificationSteps.deliver_notifications, request, **options.NOTIFY
        )


@workflow.defn(name="ChannelTestWorkflow")
class ChannelTestWorkflow:
    """A test message to one channel."""

    @workflow.run
    async def run(self, request: m.ChannelTestInput) -> m.ChannelTestResult:
        """Send it once."""
        return await workflow.execute_activity_method(NotificationSteps.test_channel, request, **options.NOTIFY)
