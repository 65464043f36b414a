#!/bin/sh
# Run a command of this repository on an emulated ARM processor, as root on Debian or Ubuntu:
#
#   apt-get install debootstrap qemu-user-static
#   tools/run_on_arm.sh FOLDER make demo
#   tools/run_on_arm.sh FOLDER make lint    # installs what the tests need
#   tools/run_on_arm.sh FOLDER .venv/bin/python -m pytest tests/ops/test_native.py
#
# FOLDER becomes a Debian for ARM with a clone of this repository at HEAD, and stays for the next command. Everything
# takes about ten times as long as without emulation.
set -eu
folder=$1
shift
repository=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)

if [ ! -e "$folder/usr/bin/g++" ]; then
    debootstrap --arch=arm64 --variant=minbase \
        --include=ca-certificates,g++,git,libgl1,libglib2.0-0,make,python3,python3-dev,python3-venv bookworm "$folder"
fi
if [ ! -e "$folder/root/mask2former" ]; then
    git clone --quiet "$repository" "$folder/root/mask2former"
fi
git -C "$folder/root/mask2former" fetch --quiet "$repository" HEAD
git -C "$folder/root/mask2former" reset --quiet --hard FETCH_HEAD
cp /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/"  # of the host, which a proxy's may be among

# PyTorch reads in /proc and /sys which processor it runs on, and there the emulator leaves the host's.
cat > "$folder/cpuinfo" << 'END'
processor	: 0
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0c
CPU revision	: 1

END
# The mounts are seen by this command alone, and gone after it.
exec unshare --mount sh -eu -c '
    folder=$1
    shift
    mount -t proc proc "$folder/proc"
    mount --bind "$folder/cpuinfo" "$folder/proc/cpuinfo"
    mount --rbind /dev "$folder/dev"
    mount -t tmpfs sys "$folder/sys"
    cpus="$folder/sys/devices/system/cpu"
    mkdir -p "$cpus/cpu0/regs/identification"
    echo 0 | tee "$cpus/possible" "$cpus/present" "$cpus/online" > /dev/null
    echo 0x00000000413fd0c1 > "$cpus/cpu0/regs/identification/midr_el1"
    exec chroot "$folder" env -C /root/mask2former LC_ALL=C.UTF-8 QEMU_CPU=neoverse-n1 \
        PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$@"
' - "$folder" "$@"
