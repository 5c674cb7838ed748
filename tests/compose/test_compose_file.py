"""docker-compose.yml by the Compose specification's schema, and by rules that the schema cannot know."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from skyfleet import __version__
from skyfleet.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
VARIABLES = re.compile(r"(?<!\$)\$\{([A-Z_]+)(?::-([^}]*))?\}")

every_service = pytest.mark.parametrize("name", SERVICES)


def schema() -> dict[str, Any]:
    """The specification's schema, from the package that ships it (found, not imported: it is a command)."""
    spec = importlib.util.find_spec("check_jsonschema")
    assert spec is not None
    assert spec.submodule_search_locations
    vendored = Path(spec.submodule_search_locations[0]) / "builtin_schemas" / "vendor" / "compose-spec.json"
    loaded: dict[str, Any] = json.loads(vendored.read_text())
    return loaded


def example() -> dict[str, str]:
    """The variables of .env.example."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_file_follows_the_specification() -> None:
    errors = [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message}"
        for e in jsonschema.Draft7Validator(schema()).iter_errors(COMPOSE)
    ]
    assert not errors


def test_the_schema_would_refuse_a_mistake() -> None:
    broken = {**COMPOSE, "services": {**SERVICES, "api": {**SERVICES["api"], "helthcheck": {}}}}
    assert list(jsonschema.Draft7Validator(schema()).iter_errors(broken))


def test_every_variable_is_documented_with_its_default() -> None:
    used = VARIABLES.findall(TEXT)
    assert {name for name, _ in used} == set(example())
    assert set(used) == set(example().items()), "a default differs, here or between two uses"


def test_every_setting_is_passed_and_no_other() -> None:
    """A misspelt SKYFLEET_ variable would be ignored without a word, and a forgotten one could not be set."""
    fields = {f"SKYFLEET_{name.upper()}" for name in Settings.model_fields}
    passed = {
        key.removesuffix("_FILE")
        for service in SERVICES.values()
        for key in service.get("environment", {})
        if key.startswith("SKYFLEET_")
    }
    of_the_dashboard = {"SKYFLEET_API", "SKYFLEET_DASHBOARD_HOST", "SKYFLEET_DASHBOARD_PORT"}
    of_the_sandbox = {"SKYFLEET_LOCAL_CLOUD_URL", "SKYFLEET_SANDBOX"}
    assert passed == fields - of_the_sandbox | of_the_dashboard


def test_defaults_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SKYFLEET_")]:
        monkeypatch.delenv(name)
    coded = Settings()
    for name, value in example().items():
        if name.startswith("SKYFLEET_") and name != "SKYFLEET_VERSION":
            monkeypatch.setenv(name, value)
            field = name.removeprefix("SKYFLEET_").lower()
            assert getattr(Settings(), field) == getattr(coded, field), name


def test_the_version_is_the_projects() -> None:
    assert example()["SKYFLEET_VERSION"] == __version__


@every_service
def test_images_are_pinned(name: str) -> None:
    tag = VARIABLES.sub(lambda match: match[2], SERVICES[name]["image"]).rpartition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?", tag), SERVICES[name]["image"]


@every_service
def test_dependencies_exist_and_can_be_waited_for(name: str) -> None:
    for target, how in SERVICES[name].get("depends_on", {}).items():
        other = SERVICES[target]
        if how["condition"] == "service_healthy":
            assert other["healthcheck"]["test"]
        else:
            assert how["condition"] == "service_completed_successfully"
            # A one-shot must be able to end, and try again a bounded number of times.
            assert re.fullmatch(r"on-failure:\d+", other["restart"])
        assert "profiles" not in other, "a dependency that is not always there"


@every_service
def test_what_runs_for_ever_restarts_and_tells_its_health(name: str) -> None:
    service = SERVICES[name]
    if service["restart"] == "unless-stopped":
        # The Web UI image has neither a shell nor a client to ask with; nothing depends on it.
        assert "healthcheck" in service or name == "temporal-ui"


@every_service
def test_no_service_has_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & set(service)
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service.get("read_only") is True or name == "temporal-ui"
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        assert source in COMPOSE["volumes"], f"{volume} is not a named volume"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_our_images_do_not_run_as_root() -> None:
    ours = {name: service for name, service in SERVICES.items() if "build" in service}
    assert set(ours) == {"migrate", "api", "worker-control", "worker-provision", "dashboard", "skypilot"}
    assert {service["user"] for service in ours.values()} == {"10001:10001"}
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1] == "10001:10001"
    assert SERVICES["postgres"]["user"] == "postgres"
    for name in ("prometheus", "grafana"):
        assert int(SERVICES[name]["user"].partition(":")[0]) > 0
        assert SERVICES[name]["profiles"] == ["observe"]


def test_prometheus_scrapes_services_at_ports_that_they_listen_on() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    scraped = {
        (job["job_name"], service, found["port"])
        for job in prometheus["scrape_configs"]
        for found in job["dns_sd_configs"]
        for service in found["names"]
    }
    workers = ("worker-control", "worker-provision")
    assert scraped == {
        ("skyfleet-api", "api", 8080),
        *(("skyfleet-worker", name, 8090) for name in workers),
        *(("skyfleet-worker-sdk", name, 8091) for name in workers),
    }
    for name in workers:
        environment = SERVICES[name]["environment"]
        assert environment["SKYFLEET_WORKER_HEALTH_HOST"] == "0.0.0.0"
        assert environment["SKYFLEET_WORKER_HEALTH_PORT"] == "8090"
        assert environment["SKYFLEET_TEMPORAL_METRICS_PORT"] == "8091"


def test_secrets_come_from_files_and_only_from_there(tmp_path: Path) -> None:
    declared = COMPOSE["secrets"]
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(declared)
    subprocess.run([ROOT / "deploy" / "make-secrets.sh", tmp_path / "secrets"], check=True, capture_output=True)
    assert {f"./secrets/{file.name}" for file in (tmp_path / "secrets").iterdir()} == {
        secret["file"] for secret in declared.values()
    }
    # A variable with a secret in it would be seen by `docker inspect`.
    for service in SERVICES.values():
        for key in service.get("environment", {}):
            assert not re.search(r"(PASSWORD|PWD|TOKEN|SECRET|DATABASE_URL)$", key), key


def test_secrets_are_kept_private_and_never_made_twice(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"

    def make() -> dict[str, str]:
        subprocess.run([ROOT / "deploy" / "make-secrets.sh", folder], check=True, capture_output=True)
        return {file.name: file.read_text() for file in folder.iterdir()}

    first = make()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    given = {"model_bucket_access_key_id", "model_bucket_secret_access_key", "skypilot_token"}
    assert {name for name, secret in first.items() if not secret} == given, "only their owners know them"
    made = [secret for secret in first.values() if secret]
    assert len(set(made)) == len(made)
    assert min(map(len, made)) >= 48
    assert first["skyfleet_database_password"] in first["database_url"]
    assert make() == first
    (folder / "skypilot_token").unlink()
    (folder / "skypilot_token").write_text("sky_token")
    assert make()["skypilot_token"] == "sky_token"


def test_real_clouds_are_for_those_alone_who_talk_to_skypilot() -> None:
    """The others' image has no SkyPilot in it, and whoever reaches its server may spend money."""
    with_skypilot = {name for name, service in SERVICES.items() if "skyfleet-skypilot" in service["image"]}
    assert with_skypilot == {"worker-provision", "skypilot"}
    for name in with_skypilot:
        assert SERVICES[name]["build"]["args"] == {"LOCK": "skypilot"}
    told = {name for name, service in SERVICES.items() if "SKYFLEET_SKYPILOT" in service.get("environment", {})}
    assert told == {"api", "worker-provision"}
    assert [name for name, service in SERVICES.items() if "skypilot_token" in service.get("secrets", [])] == [
        "worker-provision"
    ]
    for lock in ("runtime", "skypilot", "build"):
        assert f"requirements/{lock}.txt" in DOCKERFILE
        assert (ROOT / "requirements" / f"{lock}.txt").exists()


@pytest.mark.parametrize("token", ["", "sky_token\n"])
def test_the_service_account_token_comes_from_its_file(tmp_path: Path, token: str) -> None:
    (tmp_path / "skypilot_token").write_text(token)
    shown = subprocess.run(
        [ROOT / "deploy" / "with-skypilot-token.sh", "sh", "-c", 'echo "${SKYPILOT_SERVICE_ACCOUNT_TOKEN-none}"'],
        env={"PATH": os.environ["PATH"], "SECRETS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == (token.strip() or "none")


def test_an_empty_variable_and_an_empty_secret_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    monkeypatch.setenv("SKYFLEET_NODE_IMAGE", "")
    monkeypatch.setenv("SKYFLEET_MODEL_BUCKET_URL", "")
    monkeypatch.delenv("SKYFLEET_MODEL_BUCKET_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("SKYFLEET_MODEL_BUCKET_ACCESS_KEY_ID_FILE", str(tmp_path / "empty"))
    config = Settings()
    assert (config.node_image, config.model_bucket_url, config.model_bucket_access_key_id) == (None, None, None)


def test_configuration_files_exist() -> None:
    declared = {name: ROOT / item["file"] for name, item in COMPOSE["configs"].items()}
    used = [item for service in SERVICES.values() for item in service.get("configs", [])]
    assert {item["source"] for item in used} == set(declared)
    for item in used:
        file = declared[item["source"]]
        assert file.is_file()
        if file.suffix == ".sh":
            assert os.access(file, os.X_OK)
            assert subprocess.run(["sh", "-n", str(file)], check=False).returncode == 0
    for service in SERVICES.values():
        for argument in service.get("entrypoint", []):
            if argument.startswith("/deploy/"):
                assert argument in {item["target"] for item in service["configs"]}


def test_the_image_copies_what_exists_and_ignores_the_rest() -> None:
    kept = (ROOT / ".dockerignore").read_text().split()
    assert kept[kept.index("*") :], "everything is left out first"
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in [line.rstrip("/") for line in kept], source
    assert re.search(r"^ARG PYTHON=3\.12\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"python:${PYTHON}"}
    assert "--require-hashes" in DOCKERFILE
    assert not re.search(r"^ADD |://", DOCKERFILE, re.MULTILINE)
