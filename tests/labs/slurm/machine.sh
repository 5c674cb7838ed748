#!/usr/bin/env bash
# One machine of a Slurm cluster, in a private box (`../box.sh`): `unshare` namespaces, then this. `lab.py` starts it with
#   MACHINE_NAME  MACHINE_ADDRESS (on the box's network)  MACHINE_ROLE (controller or node)
#   MACHINE_FOLDER (its own)  LAB_ETC (files for /etc)  LAB_HOME (/home, shared by all)  LAB_OPT (files for /opt/lab)
#   LAB_RUNTIME (`../aws/runtime.py`)  LAB_HOSTLIST (`runtime.py`)
#
# The machine sees this one's files below a layer of its own in memory, and all that it runs ends with it.
set -euo pipefail

size=2g # at most, of memory
root=$MACHINE_FOLDER/root

# What is in /proc is still the box's: process 1 is its first there, and this one has the number that the box knows it by.
# Asked from here, netlink takes 1 for this one.
read -r self _ </proc/self/stat
in_the_box=(nsenter --net=/proc/1/ns/net)
"${in_the_box[@]}" ip link add "slurm$self" type veth peer name eth0 netns 1
"${in_the_box[@]}" ip link set "slurm$self" master machines up

mount --make-rprivate /
mount -t tmpfs -o "size=$size" tmpfs "$MACHINE_FOLDER"
mkdir -p "$MACHINE_FOLDER"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$MACHINE_FOLDER/upper,workdir=$MACHINE_FOLDER/work" "$root"
mkdir -p "$root"/opt/lab/{runtime,hostlist}
cp -r "$LAB_OPT/." "$root/opt/lab"
mount --bind "$LAB_RUNTIME" "$root/opt/lab/runtime"
mount --bind "$LAB_HOSTLIST" "$root/opt/lab/hostlist"
mount --bind "$LAB_HOME" "$root/home"
mount -t proc proc "$root/proc"
for place in dev sys; do mount --rbind "/$place" "$root/$place"; done
for place in tmp run dev/shm; do mount -t tmpfs -o "mode=1777,size=$size" tmpfs "$root/$place"; done
mkdir -p "$root"/run/{munge,sshd,gpus} "$root"/var/{lib,spool}/slurm "$root/usr/local/bin"
chmod 755 "$root"/run{,/munge,/sshd}
ln -sf /opt/lab/curl "$root/usr/local/bin/curl"
cp -r "$LAB_ETC/." "$root/etc"
# SkyPilot's Python may lie in root's own home folder.
place=$(readlink -f "$LAB_RUNTIME/skypilot-runtime/bin/python")
while place=$(dirname "$place") && [[ "$place" != / ]]; do chmod a+x "$root$place"; done
# No password, yet not locked, or sshd would refuse its key as well.
echo 'researcher:*:20000:20000::/home/researcher:/bin/bash' >>"$root/etc/passwd"
echo 'researcher:x:20000:' >>"$root/etc/group"
: >"$root/etc/resolv.conf"

hostname "$MACHINE_NAME"
ip link set lo up
ip address add "$MACHINE_ADDRESS/16" dev eth0
ip link set eth0 up

exec chroot "$root" bash -euo pipefail -c '
  munged --foreground --key-file=/etc/munge/lab.key --seed-file=/run/munge/seed --pid-file=/run/munge/pid --force &
  case $MACHINE_ROLE in
    controller)
      slurmctld -D &
      /usr/sbin/sshd -D -e -f /etc/ssh/lab_sshd_config &
      ;;
    node)
      for gpu in {0..7}; do mknod "/run/gpus/gpu$gpu" c 1 3; done
      slurmd -D &
      ;;
  esac
  while true; do wait || true; done # the first process of a machine collects orphans
'
