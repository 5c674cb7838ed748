"""The lab's Slurm clusters: their machines, and how they are configured (slurm.conf(5), gres.conf(5))."""

from __future__ import annotations

import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Who jobs belong to, on all machines. As in machine.sh.
USER: Final = "researcher"
USER_ID: Final = 20_000
PARTITION: Final = "gpu"
GPU: Final = "h100"
GPUS: Final = 8


@dataclass(frozen=True)
class Machine:
    """A machine; `address` is its own on the box's network."""

    name: str
    address: str
    role: str


@dataclass(frozen=True)
class Cluster:
    """A cluster: a machine of its name, where one logs in and Slurm's controller runs, and the nodes that work.

    `network` is the beginning of its machines' addresses. All nodes are alike, on paper: 64 CPUs, 256 GiB, eight H100.
    """

    name: str
    network: str
    size: int

    @property
    def controller(self) -> Machine:
        """Where one logs in."""
        return Machine(self.name, f"{self.network}.1", "controller")

    @property
    def nodes(self) -> list[Machine]:
        """Where jobs run."""
        numbers = range(1, self.size + 1)
        return [Machine(f"{self.name}{number}", f"{self.network}.{10 + number}", "node") for number in numbers]

    @property
    def machines(self) -> list[Machine]:
        """All of them."""
        return [self.controller, *self.nodes]


CLUSTERS: Final = {
    cluster.name: cluster for cluster in (Cluster("alpha", "10.99.101", 2), Cluster("beta", "10.99.102", 1))
}

_SLURM: Final = f"""\
ClusterName={{name}}
SlurmctldHost={{name}}
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/var/lib/slurm
SlurmdSpoolDir=/var/spool/slurm
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1024
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
MinJobAge=60
SchedulerParameters=bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={{name}}[1-{{size}}] CPUs=64 RealMemory=262144 Gres=gpu:{GPU}:{GPUS}
PartitionName={PARTITION} Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
"""
_GRES: Final = f"""\
AutoDetect=off
NodeName={{name}}[1-{{size}}] Name=gpu Type={GPU} File=/run/gpus/gpu[0-{GPUS - 1}] Flags=nvidia_gpu_env
"""
_SSHD: Final = f"""\
HostKey /etc/ssh/lab_host_key
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
AllowUsers {USER}
MaxStartups 200
MaxSessions 200
"""


def furnish(folder: Path) -> Path:
    """Write the files of all clusters below a folder; the private key that the user logs in with.

    `etc/CLUSTER` is for the /etc of its machines, `home-of/CLUSTER` for the /home that they share.
    """
    key, host_key = folder / "key", folder / "host-key"
    for path in (key, host_key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    public_key = key.with_suffix(".pub").read_text()
    munge_key = secrets.token_hex(512)
    machines = [machine for cluster in CLUSTERS.values() for machine in cluster.machines]
    hosts = "".join(f"{machine.address} {machine.name}\n" for machine in machines)
    for cluster in CLUSTERS.values():
        etc = folder / "etc" / cluster.name
        _write(etc / "hosts", f"127.0.0.1 localhost\n{hosts}")
        _write(etc / "slurm" / "slurm.conf", _SLURM.format(name=cluster.name, size=cluster.size))
        _write(etc / "slurm" / "gres.conf", _GRES.format(name=cluster.name, size=cluster.size))
        _write(etc / "munge" / "lab.key", munge_key, mode=0o600)
        _write(etc / "ssh" / "lab_sshd_config", _SSHD)
        _write(etc / "ssh" / "lab_host_key", host_key.read_text(), mode=0o600)
        home = folder / "home-of" / cluster.name / USER
        _write(home / ".ssh" / "authorized_keys", public_key, mode=0o600)
        for path in (home, *home.rglob("*")):
            os.chown(path, USER_ID, USER_ID)
    return key


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=mode)
    path.write_text(text)
