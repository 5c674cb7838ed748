"""The lab's machines, in a private box: reached as on AWS, gone when their instance is."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.labs.aws.aws_client import client, run_instance
from tests.labs.aws.lab import AwsLab
from tests.labs.aws.records import Instance
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.lab, pytest.mark.timeout(600)]

SERVE = "mkdir /tmp/www && cd /tmp/www && hostname > name && exec python3 -m http.server 8000 --bind 0.0.0.0"
METADATA = "http://169.254.169.254/latest"


@dataclass(frozen=True)
class Machine:
    """One machine, and how to log into it."""

    instance: Instance
    key: Path

    def ssh(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on it; 255 when it does not answer."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=5", "BatchMode=yes")
        flags = [flag for option in options for flag in ("-o", option)]
        argv = ["ssh", "-q", "-i", str(self.key), *flags, f"ubuntu@{self.instance.public_ip}", command]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)

    async def run(self, command: str) -> str:
        """The output of a command on it."""
        done = await asyncio.to_thread(self.ssh, command)
        assert done.returncode == 0, done
        return done.stdout

    async def up(self) -> bool:
        return (await asyncio.to_thread(self.ssh, "true")).returncode == 0


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key pair of the person who launches."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    return tmp_path / "key"


async def boot(lab: AwsLab, key: Path, **parameters: Any) -> Machine:
    """A machine that one can log into."""
    user_data = f"#cloud-config\nusers: [{{ssh_authorized_keys: ['{key.with_suffix('.pub').read_text().strip()}']}}]\n"
    instance_id = await run_instance(client(lab), UserData=user_data, spot=True, **parameters)
    (instance,) = [instance for instance in await lab.running() if instance.id == instance_id]
    machine = Machine(instance, key)
    await eventually(machine.up, what="ssh")
    return machine


async def test_a_launch_is_reached_from_outside_and_is_gone_after_down(aws_lab_with_machines: AwsLab) -> None:
    lab = aws_lab_with_machines
    await lab.sky("launch", "--yes", "--detach-run", "--infra", "aws/us-east-1", "--cluster", "serves", SERVE)
    (instance,) = await lab.running()

    async def name() -> str:
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                answer = await http.get(f"http://{instance.public_ip}:8000/name")
                return answer.text if answer.is_success else ""
        except httpx.TransportError:
            return ""

    assert (await eventually(name, timeout_s=60)).startswith("ip-172-31-")
    assert len(lab.machine_processes()) > 10
    await lab.sky("down", "--yes", "serves")
    assert await lab.running() == []
    await eventually(lambda: not lab.machine_processes(), what="no process of the machine")
    assert await name() == ""


async def test_a_machine_reaches_the_box_and_other_machines(aws_lab_with_machines: AwsLab, key: Path) -> None:
    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.client_address[0].encode())

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("0.0.0.0", 0), Hello)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        one, other = await boot(aws_lab_with_machines, key), await boot(aws_lab_with_machines, key)
        url = f"http://{aws_lab_with_machines.host_address}:{server.server_port}/"
        assert await one.run(f"curl -fsS {url}") == one.instance.public_ip
        assert await other.run(f"curl -fsS {url}") == other.instance.public_ip
        assert await other.run(f"head -c 7 </dev/tcp/{one.instance.public_ip}/22") == "SSH-2.0"
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


async def test_a_machine_reads_its_metadata_and_the_notice_of_its_end(aws_lab_with_machines: AwsLab, key: Path) -> None:
    machine = await boot(aws_lab_with_machines, key)
    token = await machine.run(f"curl -fsS -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' {METADATA}/api/token")

    async def value(name: str) -> str:
        header = f"X-aws-ec2-metadata-token: {token}"
        return await machine.run(f"curl -sS -w ' %{{http_code}}' -H '{header}' {METADATA}/meta-data/{name}")

    assert await machine.run(f"curl -sS -w '%{{http_code}}' {METADATA}/meta-data/instance-id") == "401"
    assert await value("instance-id") == f"{machine.instance.id} 200"
    assert await value("placement/region") == "us-east-1 200"
    assert await value("instance-life-cycle") == "spot 200"
    assert await value("spot/instance-action") == " 404"
    await aws_lab_with_machines.preempt(machine.instance.id, notice_s=600)
    assert (await value("spot/instance-action")).startswith('{"action": "terminate", "time": "2')
    await aws_lab_with_machines.preempt(machine.instance.id, notice_s=0.1)

    async def taken() -> bool:
        return not await aws_lab_with_machines.running()

    await eventually(taken, what="the end of the machine")
    assert not await machine.up()


@pytest.mark.parametrize(("behavior", "state"), [("stop", "stopped"), ("terminate", "terminated")])
async def test_a_machine_that_shuts_down_is_stopped_or_terminated_as_its_launch_asked(
    aws_lab_with_machines: AwsLab, key: Path, behavior: str, state: str
) -> None:
    machine = await boot(aws_lab_with_machines, key, InstanceInitiatedShutdownBehavior=behavior)
    await asyncio.to_thread(machine.ssh, "sudo shutdown -h now")

    async def seen() -> bool:
        instances = {instance.id: instance.state for instance in await aws_lab_with_machines.instances()}
        return instances[machine.instance.id] == state

    await eventually(seen, what=state)
    await eventually(lambda: not aws_lab_with_machines.machine_processes(), what="no process of the machine")


async def test_a_machine_has_what_a_task_counts_on(aws_lab_with_machines: AwsLab, key: Path) -> None:
    machine = await boot(aws_lab_with_machines, key)
    found = await machine.run("python3 -c 'import sys; print(sys.version_info >= (3, 10))'; ~/.local/bin/uv --version")
    assert found.startswith("True\nuv ")
    assert await machine.run("sudo whoami") == "ubuntu\n"  # user 0 by that name


async def test_a_machine_with_a_role_may_call_aws(aws_lab_with_machines: AwsLab, key: Path) -> None:
    """As SkyPilot's autostop does, which ends a machine from within."""
    machine = await boot(aws_lab_with_machines, key, IamInstanceProfile={"Name": "skypilot-v1"})
    aws = "~/skypilot-runtime/bin/aws --region us-east-1 ec2"
    await asyncio.to_thread(machine.ssh, f"{aws} terminate-instances --instance-ids {machine.instance.id}")
    assert await aws_lab_with_machines.running() == []
    (call,) = await aws_lab_with_machines.calls("TerminateInstances")
    assert call.result == "200"
