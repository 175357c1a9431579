"""What a kernel boots with: its image, a disk of its modules, and a small initrd.

The initrd is busybox, a few modules and the script `vm/initrd`; a distribution's own is ten times
as large and needs more of the host to be made.
"""

import lzma
import shutil
from pathlib import Path

from msgspec import Struct

from vm import bzimage, cache, debian, image
from vm.command import Unavailable, run
from vm.kernels import Kernel

HERE = Path(__file__).parent
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4")
"""What the initrd needs to find the disks and the host, in this order."""
OPTIONAL = ("crc32c_generic",)
"""ext4 asks for it by its algorithm, which modules.dep does not show; newer kernels build it in."""
UNNEEDED = (
    "drivers/gpu",
    "drivers/infiniband",
    "drivers/media",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/staging",
    "sound",
)
"""Most of the modules by size, for devices that the machine does not have."""


class BootFiles(Struct, frozen=True, kw_only=True):
    """Where they are in the cache."""

    kernel: Path
    initrd: Path
    modules_disk: Path


def boot_files(kernel: Kernel) -> BootFiles:
    recipe = (*map(_text, ("boot.py", "bzimage.py", "initrd")), kernel.suite, *kernel.packages)
    folder = cache.entry(f"kernel-{kernel.version}", recipe, lambda new: _build(kernel, new))
    return BootFiles(
        kernel=folder / "vmlinux", initrd=folder / "initrd", modules_disk=folder / "modules.img"
    )


def _text(name: str) -> str:
    return (HERE / name).read_text()


def _build(kernel: Kernel, folder: Path) -> None:
    unpacked = folder / "unpacked"
    debian.unpack(kernel.suite, kernel.packages, unpacked)
    modules = _modules(unpacked)
    _initrd(modules, folder)
    run("mke2fs", "-q", "-t", "ext4", "-d", modules.parent, folder / "modules.img", "1G")
    [packed] = [*unpacked.glob("boot/vmlinuz-*"), *modules.glob("vmlinuz")]
    (folder / "vmlinux").write_bytes(bzimage.unpacked(packed.read_bytes()))
    for scratch in ("unpacked", "ramdisk", "busybox"):
        shutil.rmtree(folder / scratch)


def _modules(unpacked: Path) -> Path:
    """The folder of modules, trimmed and indexed, with the kernel's configuration in it, where
    Debian's packages have put it, and vmlinuz too, since 7.x."""
    if not (unpacked / "lib/modules").is_dir():  # packages after Debian 12
        (unpacked / "usr/lib").rename(unpacked / "lib")
    [modules] = (unpacked / "lib/modules").iterdir()
    for name in UNNEEDED:
        shutil.rmtree(modules / "kernel" / name, ignore_errors=True)
    config = unpacked / f"boot/config-{modules.name}"
    if config.exists():
        shutil.copy(config, modules / "config")
    run("depmod", "--basedir", unpacked, modules.name)
    return modules


def _initrd(modules: Path, folder: Path) -> None:
    ramdisk = folder / "ramdisk"
    ramdisk.mkdir()
    debian.unpack(image.SUITE, ("busybox-static",), folder / "busybox")
    shutil.copy(folder / "busybox/bin/busybox", ramdisk / "busybox")
    shutil.copy(HERE / "initrd", ramdisk / "init")
    for number, module in enumerate(load_order(modules)):
        (ramdisk / f"{number:02}-{module_name(module)}.ko").write_bytes(_content(module))
    archive = folder / "initrd"
    run("sh", "-c", f"find . | cpio --quiet -o -H newc -R 0:0 >'{archive}'", cwd=ramdisk)


def load_order(modules: Path) -> list[Path]:
    """DRIVERS and what they depend on, each after its own dependencies."""
    order: list[Path] = []
    needs = dependencies((modules / "modules.dep").read_text())
    builtin = {module_name(line) for line in (modules / "modules.builtin").read_text().split()}
    for driver in DRIVERS:
        if driver not in needs and driver not in builtin and driver not in OPTIONAL:
            raise Unavailable(f"the kernel {modules.name} has no module {driver}")
        order += [modules / file for file in needs.get(driver, ()) if modules / file not in order]
    return order


def dependencies(modules_dep: str) -> dict[str, list[str]]:
    """By module name the files to load, in order; `modules.dep` has them the other way round.

    >>> dependencies("fs/ext4.ko: fs/jbd2.ko lib/crc16.ko")
    {'ext4': ['lib/crc16.ko', 'fs/jbd2.ko', 'fs/ext4.ko']}
    """
    found = {}
    for line in modules_dep.splitlines():
        file, _, needs = line.partition(":")
        found[module_name(file)] = [*reversed(needs.split()), file]
    return found


def module_name(file: Path | str) -> str:
    """
    >>> module_name("kernel/drivers/virtio/virtio-pci.ko.xz")
    'virtio_pci'
    """
    return Path(file).name.split(".")[0].replace("-", "_")


def _content(module: Path) -> bytes:
    """Uncompressed: busybox's insmod hands the file to the kernel as it is."""
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data
