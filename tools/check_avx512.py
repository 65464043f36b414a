"""Runs the native operators' AVX-512 code, in an emulator if the machine has no AVX-512, and compares it with the rest.

    python tools/check_avx512.py

    apt-get install bochs bochs-term bochsbios vgabios isolinux syslinux-common xorriso cpio
    apt-get download linux-image-6.1.0-56-cloud-amd64 && dpkg -x linux-image-*.deb linux
    python tools/check_avx512.py --kernel linux/boot/vmlinuz-*

Bochs emulates a whole computer with AVX-512. On it starts a Linux whose only process is
``tests/ops/avx512/driver.cpp``, linked with the very objects that a build of the operators has: on random problems the
results have to be those of the kernels for the baseline. Any Linux kernel for x86-64 with a serial console will do, and
``apt-cache search linux-image`` finds Debian's. Tried with Bochs 2.7 and Linux 6.1 of Debian 12, where it took two
minutes of processor time. Without ``--kernel`` the driver runs here and needs a processor with AVX-512. Exits with 0 if
all is well.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from mask2former.ops import _build

__all__ = ["main"]

DRIVER = Path(__file__).resolve().parents[1] / "tests/ops/avx512/driver.cpp"
# Linux does without AVX if it distrusts what Bochs says of XSAVE's compact formats, so they are hidden from it (321 is
# XSAVEC, 323 XSAVES). When the only process ends, Linux gives up, and the last two options let Bochs end then.
KERNEL_OPTIONS = "console=ttyS0 quiet clearcpuid=321,323 mitigations=off tsc=reliable no_timer_check panic=-1 reboot=t"
MENU = """
DEFAULT linux
PROMPT 0
LABEL linux
  KERNEL /vmlinuz
  INITRD /initrd
  APPEND {options} -- {problems}
"""
# Nobody reads the screen, and Bochs waits for ever when it has filled a terminal: so it is drawn rarely.
COMPUTER = """
display_library: term
megs: 256
cpu: model=corei7_skylake_x, ips=100000000, reset_on_triple_fault=0
clock: sync=none
romimage: file=$BXSHARE/BIOS-bochs-latest
vgaromimage: file=$BXSHARE/VGABIOS-lgpl-latest
vga: update_freq=1, realtime=0
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial.txt
log: bochs.log
panic: action=fatal
"""


def main() -> None:
    """Compiles, runs or boots, and prints what the driver says. Exits with 0 if that is PASS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", type=Path, help="a Linux kernel (vmlinuz) for x86-64, to be emulated")
    parser.add_argument("--problems", type=int, default=100, help="of each kind (default: %(default)s)")
    parser.add_argument("--timeout", type=int, default=3600, help="in seconds (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.kernel is None:
        capabilities = torch.cpu.get_capabilities()
        if not all(capabilities.get(f"avx512_{part}", False) for part in ("f", "bw", "dq", "vl")):
            parser.error("this processor has no AVX-512: name a --kernel for the emulator (see --help)")
    else:
        check_emulator(parser, arguments.kernel)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link_driver(folder)
        if arguments.kernel is None:
            command = [str(folder / "init"), str(arguments.problems)]
            said = subprocess.run(command, stdout=-1, text=True, timeout=arguments.timeout).stdout
        else:
            make_disc(folder, arguments.kernel, arguments.problems)
            said = boot(folder, arguments.timeout)
    print(said)
    sys.exit(f"\nPASS: {arguments.problems} problems" not in said)


def check_emulator(parser: argparse.ArgumentParser, kernel: Path) -> None:
    """Ends with an error where something is missing."""
    for program in ("bochs", "xorriso", "cpio", "script"):
        if shutil.which(program) is None:
            parser.error(f"{program} is not installed; --help names the packages that are needed")
    if not kernel.is_file():
        parser.error(f"there is no Linux kernel {kernel}; --help says where one comes from")


def link_driver(folder: Path) -> None:
    """Writes a program ``init`` that needs no libraries."""
    compiler = _build._find_compiler()
    objects = [x for x in _build.compile_kernels(compiler, folder) if "avx2" not in x]
    include = f"-I{_build._SOURCES}"
    _build._run([*compiler, "-std=c++17", "-O1", include, "-static", str(DRIVER), *objects, "-o", str(folder / "init")])


def make_disc(folder: Path, kernel: Path, problems: int) -> None:
    """Writes ``boot.iso``, from which a PC starts the kernel and then ``init``."""
    disc = folder / "disc"
    disc.mkdir()
    archive = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=folder, input=b"init", stdout=-1, check=True)
    (disc / "initrd").write_bytes(archive.stdout)
    shutil.copy(kernel, disc / "vmlinuz")
    shutil.copy("/usr/lib/ISOLINUX/isolinux.bin", disc)
    shutil.copy("/usr/lib/syslinux/modules/bios/ldlinux.c32", disc)
    (disc / "isolinux.cfg").write_text(MENU.format(options=KERNEL_OPTIONS, problems=problems))
    options = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-o", "boot.iso", *options, "disc"]
    subprocess.run(command, cwd=folder, stderr=subprocess.DEVNULL, check=True)


def boot(folder: Path, timeout: int) -> str:
    """What the serial console shows until Linux ends."""
    (folder / "computer").write_text(COMPUTER)
    (folder / "continue").write_text("c\n")  # for the debugger in which Debian's Bochs starts
    limited = ["timeout", "--foreground", "--signal=KILL", str(timeout)]
    bochs = [*limited, "bochs", "-q", "-f", "computer", "-rc", "continue"]
    # Bochs exits with 1 when its computer is switched off, and needs a terminal, which `script` is.
    subprocess.run(
        ["script", "-qc", shlex.join(bochs), "/dev/null"],
        cwd=folder,
        env={"TERM": "xterm", "BXSHARE": "/usr/share/bochs", **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    serial = folder / "serial.txt"
    if not serial.exists():
        return (folder / "bochs.log").read_text(errors="replace")
    said, panic, stack = serial.read_text(errors="replace").partition("Kernel panic")
    return said + panic + stack.split("\n")[0]


if __name__ == "__main__":
    main()
