"""What SkyPilot is told: one place, our labels, no secret in the open; its set-up script run for real."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfleet.clouds.skypilot import labels
from skyfleet.clouds.skypilot.task import CONTROL_PLANE_PATIENCE_S, NodeDefaults, task_config
from skyfleet.domain.offers import CreateRequest, EngineSpec, Offer
from skyfleet.domain.states import Market
from skyfleet.settings import Settings
from tests.localcloud.harness import request_for

NODE = NodeDefaults(
    port=8000, disk_gb=200, image=None, autostop_minutes=10, bucket_env={"AWS_SECRET_ACCESS_KEY": "key"}
)


def offer(**changes: Any) -> Offer:
    return Offer(
        **{
            "backend": "skypilot",
            "cloud": "aws",
            "region": "us-east-1",
            "instance_type": "g5.xlarge",
            "market": Market.SPOT,
            "hourly_price": Decimal("0.4"),
            "gpu": "A10G",
            "gpu_count": 1,
            "gpu_memory_gb": 24.0,
            **changes,
        }
    )


def asked(offer: Offer, **boot: Any) -> CreateRequest:
    request = request_for(offer, "sf-1-1", virtual=False, **boot)
    return request.model_copy(update={"tags": {"team/Name": "Ünits", "skyfleet/owner": "x"}})


def boot_file(task: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(base64.b64decode(task["secrets"]["SKYFLEET_BOOT"]))
    return decoded


def test_one_place_and_market_is_pinned() -> None:
    resources = task_config(asked(offer()), NODE)["resources"]
    assert (resources["infra"], resources["instance_type"], resources["use_spot"]) == (
        "aws/us-east-1",
        "g5.xlarge",
        True,
    )
    zoned = task_config(asked(offer(zone="us-east-1b", market=Market.ON_DEMAND)), NODE)["resources"]
    assert (zoned["infra"], zoned["use_spot"]) == ("aws/us-east-1/us-east-1b", False)
    assert resources["autostop"] == {"idle_minutes": 10, "down": True}
    assert resources["ports"] == [8000]


def test_the_labels_say_whose_it_is_and_suit_every_cloud() -> None:
    said = task_config(asked(offer()), NODE)["resources"]["labels"]
    assert said[labels.OWNER] == labels.value("tests")
    assert said[labels.OFFER] == labels.offer_value(offer())
    assert labels.price_of(said[labels.PRICE]) == Decimal("0.4")
    assert all(set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for pair in said.items() for text in pair)


def test_a_gpu_that_is_attached_is_asked_for_beside_its_machine() -> None:
    resources = task_config(asked(offer(cloud="gcp", instance_type="n1-standard-8--T4:1", gpu="T4")), NODE)["resources"]
    assert (resources["instance_type"], resources["accelerators"]) == ("n1-standard-8", {"T4": 1})


def test_a_cluster_of_ones_own_is_asked_for_nothing_that_it_has_not() -> None:
    own = offer(cloud="slurm", region="alpha", zone="gpu", instance_type="7CPU--28GB--H100:1", market=Market.ON_DEMAND)
    task = task_config(asked(own), NODE)
    resources = task["resources"]
    assert resources["infra"] == "slurm/alpha/gpu"
    assert resources["autostop"] == {"idle_minutes": 10, "down": True}
    assert not {"use_spot", "disk_size", "ports", "image_id"} & resources.keys()
    assert boot_file(task)["port"] == 0  # its nodes are shared: the agent looks for one that is free


@given(st.text(alphabet="abcdefXYZ0123456789-_/+", min_size=12, max_size=40))
def test_no_secret_is_in_the_open(secret: str) -> None:
    secret = f"sec/{secret}"
    task = task_config(asked(offer(), registration_token=secret, env={"HF_TOKEN": secret}), NODE)
    assert boot_file(task)["registration_token"] == secret
    assert secret not in json.dumps({name: value for name, value in task.items() if name != "secrets"})


def test_the_buckets_keys_go_where_its_weights_do_and_nowhere_else() -> None:
    assert "AWS_SECRET_ACCESS_KEY" not in boot_file(task_config(asked(offer(), model_source="org/model"), NODE))["env"]
    streamed = boot_file(task_config(asked(offer(), model_source="s3://bucket/org/model", env={"A": "b"}), NODE))
    assert streamed["env"] == {"AWS_SECRET_ACCESS_KEY": "key", "A": "b"}
    assert streamed["control_plane_patience_s"] == CONTROL_PLANE_PATIENCE_S


def test_the_defaults_are_the_settings() -> None:
    keys = {"model_bucket_access_key_id": "id", "model_bucket_secret_access_key": "key"}
    node = NodeDefaults.of(Settings(node_port=9000, model_bucket_endpoint="https://r2.example", **keys))
    assert node.port == 9000
    assert node.bucket_env["AWS_ENDPOINT_URL"] == "https://r2.example"
    assert NodeDefaults.of(Settings()).bucket_env == {}


def test_skypilot_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    import sky

    config = task_config(asked(offer(), registration_token="one-time"), NODE)
    del config["resources"]["infra"], config["resources"]["instance_type"]  # they are looked up in a catalog
    secret = config["secrets"]["SKYFLEET_BOOT"]
    task = sky.Task.from_yaml_config(config)
    [resources] = task.resources
    assert resources.use_spot
    assert resources.autostop_config.down
    assert list(task.secrets) == ["SKYFLEET_BOOT"]
    assert secret not in json.dumps(task.to_yaml_config(use_user_specified_yaml=True))


# --- the script ------------------------------------------------------------------------------------------------------

_AGENT = b"import sys\nprint('agent was run with', sys.argv[1:])\n"


@pytest.fixture
def downloads() -> Iterator[str]:
    """An API that hands out an agent, at its second try."""
    tries: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tries.append(self.path)
            found = self.path == "/downloads/node-agent/0.0.1" and len(tries) > 1
            self.send_response(200 if found else 503)
            self.end_headers()
            self.wfile.write(_AGENT if found else b"")

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def set_up(home: Path, url: str, sha256: str) -> subprocess.CompletedProcess[str]:
    task = task_config(asked(offer(), control_plane_url=url, agent_sha256=sha256, engine=EngineSpec(name="echo")), NODE)
    env = {"HOME": str(home), "PATH": os.environ["PATH"], **task["envs"], **task["secrets"]}
    return subprocess.run(["bash", "-c", task["setup"]], env=env, capture_output=True, text=True, timeout=60)


def test_the_script_fetches_checks_and_runs_the_agent(tmp_path: Path, downloads: str) -> None:
    done = set_up(tmp_path, downloads, hashlib.sha256(_AGENT).hexdigest())
    assert done.returncode == 0, done.stderr
    assert "again in 1 s" in done.stdout
    assert "agent was run with ['install', '--boot', 'boot.json'" in done.stdout
    boot = next(tmp_path.glob(".skyfleet/*/boot.json"))
    assert json.loads(boot.read_text())["port"] == 8000
    assert boot.stat().st_mode & 0o077 == 0


def test_the_script_refuses_another_agent(tmp_path: Path, downloads: str) -> None:
    done = set_up(tmp_path, downloads, "0" * 64)
    assert done.returncode != 0
    assert "is not the one that the launch named" in done.stderr
    assert "agent was run" not in done.stdout
