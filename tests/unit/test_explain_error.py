"""`skyfleet explain-error` as a person and a script use it."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from skyfleet.cli.explain import explain_error

RAW = (
    "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation: We currently do not "
    "have sufficient p2.xlarge capacity in the Availability Zone you requested (us-east-1a)."
)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("explain-error")(explain_error)
    return app


def test_json_is_one_object_with_the_contract_keys(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["--cloud", "aws", "--json"], input=RAW + "\n")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(found) == {"cloud", "kind", "scope", "retryable", "code", "message", "next_steps", "raw"}
    assert (found["kind"], found["scope"], found["retryable"]) == ("capacity", "zone", True)
    assert found["code"] == "InsufficientInstanceCapacity"
    assert found["raw"] == RAW


def test_a_person_reads_kind_scope_message_steps_and_raw(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["--cloud", "aws"], input=RAW)
    assert result.exit_code == 0
    for part in ("capacity", "zone", "retryable", "us-east-1a", "1. ", "InsufficientInstanceCapacity", RAW):
        assert part in result.stdout


def test_markup_in_the_raw_text_is_shown_as_it_is(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["--cloud", "aws"], input="[bold]boom[/bold] [/nope]")
    assert result.exit_code == 0
    assert "[bold]boom[/bold] [/nope]" in result.stdout


def test_bytes_that_are_no_text(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["--cloud", "aws", "--json"], input=b"\xff\xfe\x00 VcpuLimitExceeded")
    assert json.loads(result.stdout)["kind"] == "quota"


@pytest.mark.parametrize("empty", ["", " \n"])
def test_empty_input_is_a_usage_error(app: typer.Typer, empty: str) -> None:
    result = CliRunner().invoke(app, ["--cloud", "aws"], input=empty)
    assert result.exit_code == 2
    assert "standard input" in result.stderr
    assert result.stdout == ""


def test_cloud_is_required(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, [], input=RAW).exit_code == 2
