#!/usr/bin/env bash
# Runs a command in a private box: `tests/labs/box.sh COMMAND…`
#
# The box has its own processes, mounts, host name and network. Its network is loopback and a bridge for the machines that
# the AWS lab boots, on which the box itself is SKYFLEET_LAB_BOX; nothing leads out. When the command ends, however it
# ends, so does everything in the box. Needs root; where there is no box to be had the command runs outside, without
# that variable, and the tests that need it are skipped.
set -euo pipefail

kinds=(--net --pid --mount --uts --ipc --fork --mount-proc --kill-child)
if ! why=$(unshare "${kinds[@]}" ip link set lo up 2>&1); then
  echo "box: none to be had here, tests that need it are skipped: $why" >&2
  exec "$@"
fi

export SKYFLEET_LAB_BOX=10.99.0.1
exec unshare "${kinds[@]}" bash -euo pipefail -c '
  # ssh names its shared connections after the host, in a folder of /tmp that all boxes see.
  hostname "lab-box-$RANDOM$RANDOM"
  ip link set lo up
  ip link add machines type bridge
  ip address add "$SKYFLEET_LAB_BOX/16" dev machines
  # The address of instance metadata on AWS.
  ip address add 169.254.169.254/32 dev machines
  ip link set machines up
  echo 1 >/proc/sys/net/ipv4/ip_forward
  # Not exec: the first process of a box collects orphans, which a shell does.
  "$@" || exit
' box "$@"
