"""`offers` and `providers`: what the clouds sell, and which can be bought at."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from skyfleet.cli.common import (
    JsonFlag,
    ago,
    bought,
    complain,
    complain_as_json,
    facts,
    marked,
    place,
    price,
    say,
    seconds,
    session,
    table,
    write_json,
)
from skyfleet.cli.exits import Exit
from skyfleet.domain.states import Market

if TYPE_CHECKING:
    from skyfleet.domain.views import OfferView, ProviderList, ProviderView

_PAGE = 2_000  # as many as the API gives at once
_SHOWN = 50
_CHECK_SECONDS = 120.0

providers = typer.Typer(
    help="The clouds, and why some are not enabled; alone, it lists them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(providers, name="providers")
    app.command()(offers)


# --- offers -----------------------------------------------------------------------------------------------------


def offers(
    model: Annotated[str | None, typer.Option(help="Only what this model fits.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="With --model: also what it does not fit, and why not.")
    ] = False,
    provider: Annotated[str | None, typer.Option(help="Only this cloud.")] = None,
    region: Annotated[str | None, typer.Option(help="Only this region.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Only this GPU.")] = None,
    instance_type: Annotated[str | None, typer.Option(help="Only this machine type.")] = None,
    market: Annotated[Market | None, typer.Option(help="Only this market.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The N cheapest. Default: 50 as a table, all as JSON.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """What the clouds sell, cheapest first, and what spot saves against on-demand."""
    wanted = limit or (None if as_json else _SHOWN)
    found: list[OfferView] = []
    cursor: str | None = None
    with session().client() as client:
        while True:
            page = client.offers(
                model_name=model,
                fits=True if model and not everything else None,
                provider=provider,
                region=region,
                gpu=gpu,
                instance_type=instance_type,
                market=None if market is None else market.value,
                cursor=cursor,
                limit=_PAGE if wanted is None else min(_PAGE, wanted - len(found)),
            )
            found += page.offers
            cursor = page.next
            if cursor is None or len(found) == wanted:
                break
    if as_json:
        write_json({"offers": found, "total": page.total})
        return
    _offer_table(found, model if everything else None)
    if len(found) < page.total:
        say(f"The {len(found)} cheapest of {page.total:,}; narrow it down, or give --limit.")
    elif not found and model and not everything:
        say(f"Nothing that is on sale fits {model}; --all shows why.")


def _offer_table(found: list[OfferView], judged: str | None) -> None:
    columns = ["PRICE", "MARKET", "SAVES", "WHERE", "TYPE", "GPU", "GPU MEMORY", "VCPUS", "MEMORY", ""]
    table(
        [*columns, f"FITS {judged}"] if judged else columns,
        (
            (
                price(one.hourly_price),
                bought(one.market),
                None if one.spot_saving is None else f"{one.spot_saving:.0%}",
                place(one.cloud, one.region, one.zone),
                one.instance_type,
                f"{one.gpu_count}x {one.gpu}" if one.gpu else None,
                f"{one.gpu_memory_gb * one.gpu_count:g} GB" if one.gpu else None,
                one.vcpus,
                f"{one.memory_gb:g} GB",
                marked(one.sandbox) or " ",
                *(("yes" if one.fits else one.why_not or "no",) if judged else ()),
            )
            for one in found
        ),
        right=("PRICE", "SAVES", "GPU MEMORY", "VCPUS", "MEMORY"),
    )


# --- providers --------------------------------------------------------------------------------------------------


@providers.callback()
def list_providers(context: typer.Context, as_json: JsonFlag = False) -> None:
    """The clouds, and why some are not enabled; alone, it lists them."""
    if context.invoked_subcommand is not None:
        return
    with session().client() as client:
        found = client.providers()
    _write(found, as_json)


@providers.command("show")
def show_provider(
    cloud: Annotated[str, typer.Argument(metavar="CLOUD", help="A cloud, such as aws.")], as_json: JsonFlag = False
) -> None:
    """One cloud: its regions and prices, or why it is not enabled and what to do."""
    with session().client() as client:
        known = client.providers().providers
    found = [one for one in known if one.cloud == cloud.lower()]
    if not found:
        names = ", ".join(sorted({one.cloud for one in known})) or "none yet"
        (complain_as_json if as_json else complain)(f"no provider {cloud!r}; there are: {names}")
        raise typer.Exit(Exit.NOT_FOUND)
    if as_json:
        write_json({"providers": found})
        return
    for one in found:
        _describe(one)


@providers.command("refresh")
def refresh_providers(
    wait: Annotated[bool, typer.Option("--wait", help="Until they are checked.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="TIME", help="With --wait: for how long; exits 7 after it. Default: 2m."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check the clouds and read what they sell now, as after new credentials."""
    with session().client() as client:
        accepted = client.refresh_providers()
        if not wait:
            if as_json:
                write_json(accepted)
            else:
                say("the clouds are being checked; see `skyfleet providers`")
            return
        deadline = time.monotonic() + (timeout or _CHECK_SECONDS)
        while not _checked(found := client.providers(), accepted.requested_at):
            if time.monotonic() > deadline:
                failed = [f"; {one.name}: {one.error}" for one in found.backends if one.error]
                (complain_as_json if as_json else complain)("not all clouds are checked yet" + "".join(failed))
                raise typer.Exit(Exit.TIMEOUT)
            time.sleep(0.3)
    _write(found, as_json)


def _checked(found: ProviderList, since: datetime) -> bool:
    times = [one.checked_at for one in found.providers]
    return bool(times) and all(at is not None and at >= since for at in times)


def _write(found: ProviderList, as_json: bool) -> None:
    if as_json:
        write_json(found)
        return
    table(
        ("", "CLOUD", "OFFERS", "REGIONS", "FROM", "CHECKED", "", "WHY NOT"),
        (
            (
                "✓" if one.enabled else "✗",
                one.cloud,
                one.offers or None,
                len(one.regions) or None,
                price(one.cheapest_price),
                ago(one.checked_at),
                marked(one.sandbox) or " ",
                one.reason.partition("\n")[0] or " ",
            )
            for one in found.providers
        ),
        right=("OFFERS", "REGIONS", "FROM"),
    )
    for backend in found.backends:
        if backend.error:
            say(f"{backend.name}: {backend.error} (read {ago(backend.read_at) or 'never'})", style="red")
    if any(not one.enabled for one in found.providers):
        say("`skyfleet providers show CLOUD` says all that is known of one.")


def _describe(one: ProviderView) -> None:
    state = "enabled" if one.enabled else "not enabled"
    say(" · ".join(part for part in (one.cloud, state, marked(one.sandbox)) if part), style="bold")
    if one.reason:
        say(one.reason)
    facts([("through", one.backend), ("checked", ago(one.checked_at)), ("GPUs", ", ".join(one.gpus) or None)])
    if one.regions:
        table(
            ("REGION", "OFFERS", "FROM"),
            ((region.region, region.offers, price(region.cheapest_price)) for region in one.regions),
            right=("OFFERS", "FROM"),
        )
