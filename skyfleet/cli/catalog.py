"""`models` and `offers`."""

from __future__ import annotations

from typing import Annotated

import typer

from skyfleet.cli.common import JsonFlag, bought, marked, place, price, say, session, table, write_json
from skyfleet.domain.states import Market

models = typer.Typer(help="The model catalog; alone, it lists it.", invoke_without_command=True, rich_markup_mode=None)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(models, name="models")
    app.command()(offers)


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
        ("MODEL", "FAMILY", "SIZE", "GPU MEMORY", "CONTEXT", "ORIGIN"),
        (
            (
                one.id,
                one.family,
                one.size,
                f"{one.vram_required_gb:g} GB",
                None if one.context_length is None else f"{one.context_length:,}",
                one.origin,
            )
            for one in known
        ),
        right=("SIZE", "GPU MEMORY", "CONTEXT"),
    )


@models.command("add")
def add_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name that launches give, as on its hub.")],
    parameters: Annotated[
        float | None, typer.Option(min=1, metavar="N", help="Number of parameters, such as 8.03e9.")
    ] = None,
    vram: Annotated[
        float | None,
        typer.Option(min=0, metavar="GB", help="GPU memory that serving takes. Default: from --parameters."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Display name.")] = None,
    family: Annotated[str | None, typer.Option(help="Family, such as llama.")] = None,
    size: Annotated[str | None, typer.Option(help="Size as people write it, such as 8B.")] = None,
    context_length: Annotated[int | None, typer.Option(min=1, metavar="TOKENS", help="Longest context.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the weights are: hub id, bucket URL or path.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a model into the catalog, or change the one of that name."""
    if parameters is None and vram is None:
        raise typer.BadParameter("give --parameters or --vram, to know what fits", param_hint="--parameters")
    body = {
        "id": model,
        "name": name,
        "family": family,
        "size": size,
        "parameters": None if parameters is None else int(parameters),
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


@models.command("remove")
def remove_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the catalog.")], as_json: JsonFlag = False
) -> None:
    """Take a model out of the catalog. What runs goes on."""
    with session().client() as client:
        client.delete_model(model)
    if as_json:
        write_json({"removed": model})
    else:
        say(f"{model}: removed")


def offers(
    model: Annotated[str | None, typer.Option(help="Say whether each offer fits this model, and why not.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this cloud.")] = None,
    region: Annotated[str | None, typer.Option(help="Only this region.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Only this GPU.")] = None,
    instance_type: Annotated[str | None, typer.Option(help="Only this machine type.")] = None,
    market: Annotated[Market | None, typer.Option(help="Only this market.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What the clouds sell, cheapest first."""
    with session().client() as client:
        found = client.offers(
            model_name=model,
            provider=provider,
            region=region,
            gpu=gpu,
            instance_type=instance_type,
            market=None if market is None else market.value,
        )
    if as_json:
        write_json(found)
        return
    columns = ["PRICE", "MARKET", "WHERE", "TYPE", "GPU", "GPU MEMORY", "VCPUS", "MEMORY", ""]
    table(
        [*columns, f"FITS {model}"] if model else columns,
        (
            (
                price(one.hourly_price),
                bought(one.market),
                place(one.cloud, one.region, one.zone),
                one.instance_type,
                f"{one.gpu_count}x {one.gpu}" if one.gpu else None,
                f"{one.gpu_memory_gb * one.gpu_count:g} GB" if one.gpu else None,
                one.vcpus,
                f"{one.memory_gb:g} GB",
                marked(one.sandbox) or " ",
                *(("yes" if one.fits else one.why_not or "no",) if model else ()),
            )
            for one in found.offers
        ),
        right=("PRICE", "GPU MEMORY", "VCPUS", "MEMORY"),
    )
