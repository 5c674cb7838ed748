"""`api-keys`, `audit`, `health`, `version`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from skyfleet.cli.common import JsonFlag, ago, moment, say, session, table, write_json
from skyfleet.cli.exits import Exit
from skyfleet.domain.states import Role

keys = typer.Typer(help="The API keys; alone, it lists them.", invoke_without_command=True, rich_markup_mode=None)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(keys, name="api-keys")
    for command in (audit, health, version):
        app.command()(command)


@keys.callback()
def list_keys(context: typer.Context, as_json: JsonFlag = False) -> None:
    """The API keys; alone, it lists them."""
    if context.invoked_subcommand is not None:
        return
    with session().client() as client:
        known = client.api_keys()
    if as_json:
        write_json(known)
        return
    table(
        ("ID", "NAME", "ROLE", "TENANT", "CREATED", "BY", "LAST USED", "STATE"),
        (
            (
                one.id,
                one.name,
                one.role.value,
                one.tenant,
                ago(one.created_at),
                one.created_by,
                ago(one.last_used_at),
                f"revoked {ago(one.revoked_at)}"
                if one.revoked_at
                else f"until {one.expires_at:%Y-%m-%d %H:%M} UTC"
                if one.expires_at
                else "valid",
            )
            for one in known.api_keys
        ),
    )


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose or what key it is.")],
    role: Annotated[Role, typer.Option(help="What it may do; each role includes those before it.")] = Role.VIEWER,
    tenant: Annotated[str | None, typer.Option(help="Tenant that it belongs to.")] = None,
    expires: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="When it ends, such as 2027-01-31T18:00.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make an API key. It is printed once, and kept nowhere."""
    with session().client() as client:
        made = client.create_api_key(name, role, tenant=tenant, expires_at=expires)
    if as_json:
        write_json(made)
    else:
        say(made.key)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `api-keys` lists it.")],
    as_json: JsonFlag = False,
) -> None:
    """Make an API key useless, for good."""
    with session().client() as client:
        client.revoke_api_key(key_id)
    if as_json:
        write_json({"revoked": key_id})
    else:
        say(f"{key_id}: revoked")


def audit(
    principal: Annotated[str | None, typer.Option(help="Only what this principal did.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only what concerns this subject.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Entries a page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Page to show, as the page before named it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Who did what, newest first."""
    with session().client() as client:
        page = client.audit(principal=principal, action=action, subject=subject, limit=limit, cursor=cursor)
    if as_json:
        write_json(page)
        return
    table(
        ("AT (UTC)", "WHO", "DID", "TO", "OUTCOME", "FROM", "DETAIL"),
        (
            (
                f"{one.at:%Y-%m-%d %H:%M:%S}",
                one.principal,
                one.action,
                one.subject,
                one.outcome,
                one.remote,
                " ".join(f"{name}={value}" for name, value in one.detail.items() if value is not None),
            )
            for one in page.entries
        ),
    )
    if page.next:
        say(f"more: --cursor {page.next}")


def health(as_json: JsonFlag = False) -> None:
    """Whether launches are accepted and carried out. Exits 1 when they are not."""
    with session().client() as client:
        url, report = client.target.url, client.health()
    if as_json:
        write_json(report)
    else:
        mark = " · sandbox" if report.sandbox else ""
        say(f"{url} · Skyfleet {report.version} · {'healthy' if report.ok else 'NOT healthy'}{mark}", style="bold")
        for name, part in report.components.items():
            say(f"  {'✓' if part.ok else '✗'} {name}{': ' if part.detail else ''}{part.detail}")
    raise typer.Exit(Exit.OK if report.ok else Exit.FAILED)


def version(as_json: JsonFlag = False) -> None:
    """The version of this program."""
    from skyfleet import __version__

    if as_json:
        write_json({"version": __version__})
    else:
        say(__version__)
