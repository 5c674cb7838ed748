#!/usr/bin/env bash
# The first process of one of the lab's machines, in namespaces of its own. `machines.py` starts it with
#   MACHINE_ID  MACHINE_FOLDER  MACHINE_HOME (shared, read only)  MACHINE_KEYS (a file)  MACHINE_HOST_KEY (a file)
#   MACHINE_PUBLIC_IP  MACHINE_PRIVATE_IP  MACHINE_GATEWAY  MACHINE_ENV (of all that runs on it: NAME=value NAME=value …)
# and writes a line to it once it has put a network card in.
#
# The machine sees this one's files below a layer of its own in memory: what it writes is gone when it is off.
set -euo pipefail

disk=1500m # at most, of memory
folder=$MACHINE_FOLDER
root=$folder/root
mount --make-rprivate /
mount -t tmpfs -o "size=$disk" tmpfs "$folder"
mkdir -p "$folder"/{upper,work,home-upper,home-work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
mkdir -p "$root/home/ubuntu"
mount -t overlay overlay -o "lowerdir=$MACHINE_HOME,upperdir=$folder/home-upper,workdir=$folder/home-work" "$root/home/ubuntu"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for place in tmp run dev/shm; do mount -t tmpfs -o "mode=1777,size=$disk" tmpfs "$root/$place"; done
mkdir -p "$root/run/sshd"

hostname "ip-${MACHINE_PRIVATE_IP//./-}"
printf '127.0.0.1 localhost\n%s %s\n' "$MACHINE_PUBLIC_IP" "$(hostname)" >"$root/etc/hosts"
: >"$root/etc/resolv.conf"

# The image's user may become root without a password: here it is root by another name.
{ echo 'ubuntu:*:0:0::/home/ubuntu:/bin/bash' && grep -v '^ubuntu:' /etc/passwd; } >"$root/etc/passwd"
install -d "$root/usr/local/bin" "$root/usr/local/sbin"
cat >"$root/usr/local/bin/sudo" <<'SUDO'
#!/bin/bash
while [[ "${1:-}" == -* ]]; do [[ "$1" == -u ]] && shift; shift; done
exec "$@"
SUDO
printf '#!/bin/sh\nkill -TERM 1\n' >"$root/usr/local/sbin/shutdown"
chmod +x "$root/usr/local/bin/sudo" "$root/usr/local/sbin/shutdown"
ln -sf shutdown "$root/usr/local/sbin/poweroff"

install -d -m 700 "$root/home/ubuntu/.ssh"
install -m 600 "$MACHINE_KEYS" "$root/home/ubuntu/.ssh/authorized_keys"
install -m 600 "$MACHINE_HOST_KEY" "$root/etc/ssh/lab_host_key"
cat >"$root/etc/ssh/lab_sshd_config" <<SSHD
HostKey /etc/ssh/lab_host_key
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
MaxSessions 200
MaxStartups 200
SetEnv $MACHINE_ENV
Subsystem sftp internal-sftp
PidFile none
SSHD

read -r
ip link set lo up
ip link set eth0 up
ip address add "$MACHINE_PUBLIC_IP/32" dev eth0
ip address add "$MACHINE_PRIVATE_IP/32" dev eth0
ip route add "$MACHINE_GATEWAY" dev eth0 src "$MACHINE_PUBLIC_IP"
ip route add default via "$MACHINE_GATEWAY" src "$MACHINE_PUBLIC_IP"

trap 'exit 0' TERM # shutdown, in the machine; without its first process a namespace has none
chroot "$root" /usr/sbin/sshd -D -e -f /etc/ssh/lab_sshd_config &
while true; do wait || true; done
