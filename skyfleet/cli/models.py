"""`models`: the model catalog, and the bucket that it is read from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skyfleet.cli.common import JsonFlag, ago, complain, errors, facts, say, seconds, session, table, write_json
from skyfleet.cli.exits import Exit

if TYPE_CHECKING:
    from skyfleet.domain.sizing import VramEstimate
    from skyfleet.domain.views import ModelBucketView, ModelView

models = typer.Typer(help="The model catalog; alone, it lists it.", invoke_without_command=True, rich_markup_mode=None)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model of the catalog.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(models, name="models")


@models.callback()
def list_models(context: typer.Context, as_json: JsonFlag = False) -> None:
    """The model catalog; alone, it lists it."""
    if context.invoked_subcommand is not None:
        return
    with session().client() as client:
        known = client.models()
    if as_json:
        write_json({"models": known})
        return
    table(
        ("MODEL", "FAMILY", "SIZE", "DTYPE", "WEIGHTS", "GPU MEMORY", "CONTEXT", "ORIGIN"),
        (
            (
                one.id,
                one.family,
                one.size,
                one.dtype,
                _gigabytes(one.weights_gb),
                _gigabytes(one.vram_required_gb),
                _count(one.context_length),
                one.origin,
            )
            for one in known
        ),
        right=("SIZE", "WEIGHTS", "GPU MEMORY", "CONTEXT"),
    )


@models.command("show")
def show_model(
    model: Model,
    context_tokens: Annotated[
        int | None, typer.Option("--context", min=1, metavar="TOKENS", help="For sequences of this length.")
    ] = None,
    sequences: Annotated[
        int | None, typer.Option("--concurrency", min=1, metavar="N", help="For so many sequences at once.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """One model, and how much GPU memory it takes, term by term; for other use too."""
    from skyfleet.client import ApiError
    from skyfleet.domain.views import Problem

    with session().client() as client:
        view = next((one for one in client.models() if one.id == model), None)
        if view is None:
            raise ApiError(404, Problem(title="Not Found", status=404, detail=f"no model {model!r} in the catalog"))
        if context_tokens is not None or sequences is not None:
            estimate = client.model_estimate(model, context_tokens=context_tokens, sequences=sequences)
            view = view.model_copy(update={"vram_estimate": estimate})
    if as_json:
        write_json(view)
        return
    say(f"{view.id} · {view.name}", style="bold")
    facts(
        (
            ("family", view.family),
            ("parameters", view.size if view.parameters is None else f"{view.parameters:,} ({view.size})"),
            ("dtype", view.dtype),
            ("weights", _gigabytes(view.weights_gb)),
            ("longest context", None if view.context_length is None else f"{view.context_length:,} tokens"),
            ("origin", view.origin),
            ("source", view.source),
            ("GPU memory needed", _gigabytes(view.vram_required_gb)),
        )
    )
    if view.vram_estimate is None:
        say("The GPU memory was given by hand; there is no estimate behind it.")
    else:
        _explain(view, view.vram_estimate)


def _explain(view: ModelView, estimate: VramEstimate) -> None:
    use = ""
    if estimate.context_tokens is not None and estimate.sequences is not None:
        use = f", for {estimate.sequences:,} sequences of {estimate.context_tokens:,} tokens at once"
    say(f"\nThe estimate{use}", style="bold")
    cache = estimate.kv_cache
    per_token = "" if cache is None else f"{cache.bytes_per_token:,} bytes a token"
    if cache is not None and cache.window_tokens is not None:
        per_token += f", {cache.windowed_bytes_per_token:,} of them for the newest {cache.window_tokens:,} tokens alone"
    facts(
        (
            ("  weights", _gigabytes(estimate.weights_gb)),
            ("+ KV cache", None if cache is None else f"{estimate.kv_cache_gb:g} GB  ({per_token})"),
            ("+ overhead", _gigabytes(estimate.overhead_gb)),
            ("/ share of the GPU", None if cache is None else f"{estimate.gpu_memory_utilization:g}"),
            ("= GPU memory", _gigabytes(estimate.total_gb)),
            ("formula", estimate.formula),
        )
    )
    for source in estimate.sources:
        say(f"source   {source}")


@models.command("add")
def add_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name that launches give, as on its hub.")],
    parameters: Annotated[
        float | None, typer.Option(min=1, metavar="N", help="Number of parameters, such as 8.03e9.")
    ] = None,
    vram: Annotated[
        float | None,
        typer.Option(min=0, metavar="GB", help="GPU memory that serving takes. Default: estimated."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="What the weights are kept in: bfloat16, fp8, int4, … Default: 16 bits.")
    ] = None,
    weights: Annotated[
        float | None, typer.Option(min=0, metavar="GB", help="Size of the weight files. Default: from --parameters.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="Its config.json, for a better estimate."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Display name.")] = None,
    family: Annotated[str | None, typer.Option(help="Family, such as llama.")] = None,
    size: Annotated[str | None, typer.Option(help="Size as people write it, such as 8B.")] = None,
    context_length: Annotated[int | None, typer.Option(min=1, metavar="TOKENS", help="Longest context.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the weights are: hub id, bucket URL or path.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a model into the catalog, or change the one of that name. It goes before one of the bucket."""
    if parameters is None and vram is None and weights is None:
        raise typer.BadParameter("give --parameters, --weights or --vram, to know what fits", param_hint="--parameters")
    body = {
        "id": model,
        "name": name,
        "family": family,
        "size": size,
        "parameters": None if parameters is None else int(parameters),
        "dtype": dtype,
        "weights_gb": weights,
        "config": None if config is None else _config(config),
        "context_length": context_length,
        "vram_required_gb": vram,
        "source": source,
    }
    with session().client() as client:
        registered = client.register_model(body)
    if as_json:
        write_json(registered)
    else:
        say(f"{registered.id}: needs {registered.vram_required_gb:g} GB of GPU memory")


def _config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise typer.BadParameter(f"{path} is no JSON: {error}", param_hint="--config") from None
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path} is no JSON object", param_hint="--config")
    return content


@models.command("remove")
def remove_model(model: Model, as_json: JsonFlag = False) -> None:
    """Take a model out of the catalog. What runs goes on. One that is in the bucket comes back."""
    with session().client() as client:
        client.delete_model(model)
    if as_json:
        write_json({"removed": model})
    else:
        say(f"{model}: removed")


@models.command("bucket")
def show_bucket(as_json: JsonFlag = False) -> None:
    """The bucket that models are read from: how its last reading went, and what was left out and why."""
    with session().client() as client:
        view = client.model_bucket()
    if as_json:
        write_json(view)
    else:
        _describe(view)


@models.command("refresh")
def refresh_models(
    wait: Annotated[bool, typer.Option("--wait", help="Until it is read.")] = False,
    timeout: Annotated[
        float | None, typer.Option(parser=seconds, metavar="TIME", help="With --wait: for how long; exits 7 after it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read the model bucket now."""
    with session().client() as client:
        accepted = client.refresh_models()
        if not wait:
            if as_json:
                write_json(accepted)
            else:
                say(f"{accepted.url}: being read; see `skyfleet models bucket`")
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        view = client.model_bucket()
        while view.attempted_at is None or view.attempted_at < accepted.requested_at:
            if deadline is not None and time.monotonic() > deadline:
                errors().print(f"{accepted.url} is not read yet; it is still being read", style="red")
                raise typer.Exit(Exit.TIMEOUT)
            time.sleep(0.3)
            view = client.model_bucket()
    if as_json:
        write_json(view)
    else:
        _describe(view)
    if view.error:
        raise typer.Exit(Exit.FAILED)


def _describe(view: ModelBucketView) -> None:
    if view.url is None:
        say("No model bucket is configured: give the workers SKYFLEET_MODEL_BUCKET_URL and its keys.")
        return
    say(f"{view.url} · {view.models} models · read {ago(view.synced_at) or 'never'}", style="bold")
    if view.error:
        complain(f"the last reading, {ago(view.attempted_at)}, failed: {view.error}")
    if view.skipped:
        table(("LEFT OUT", "WHY"), ((item.path or "/", item.reason) for item in view.skipped))


def _gigabytes(size: float | None) -> str | None:
    return None if size is None else f"{size:g} GB"


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"
