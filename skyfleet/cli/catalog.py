"""`offers`: what the clouds sell."""

from __future__ import annotations

from typing import Annotated

import typer

from skyfleet.cli.common import JsonFlag, bought, marked, place, price, session, table, write_json
from skyfleet.domain.states import Market


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(offers)


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
