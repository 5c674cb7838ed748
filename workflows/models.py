"""`ModelRefreshWorkflow`: run by a Temporal Schedule, or because somebody asked, reads the model bucket."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.signatures import ModelSteps
    from skyfleet.domain import messages as m
    from workflows import options


@workflow.defn(name="ModelRefreshWorkflow")
class ModelRefreshWorkflow:
    """One reading of the bucket into the catalog. It fails when the bucket cannot be listed."""

    @workflow.run
    async def run(self, request: m.RefreshModelsInput) -> m.RefreshModelsResult:
        """Read it; a store that is away for a moment is asked again."""
        return await workflow.execute_activity_method(ModelSteps.refresh_models, request, **options.BUCKET)
