"""The kernel inside a bzImage.

Under emulation the kernel needs four seconds to unpack itself, the host one, once. QEMU boots the
unpacked kernel by its PVH entry (CONFIG_PVH, since v4.21), where addresses are not randomised.
Header: Documentation/arch/x86/boot.rst.
"""

import lzma
import struct
import subprocess

SETUP_SECTORS = 0x1F1
PAYLOAD_OFFSET = 0x248
"""Two 32-bit numbers: where the payload is, counted from the end of the setup code, and its size"""
XZ = b"\xfd7zXZ\x00"
ZSTD = b"\x28\xb5\x2f\xfd"
ELF = b"\x7fELF"


def unpacked(bzimage: bytes) -> bytes:
    """The ELF kernel, or the bzImage as it is where its compression is unknown."""
    packed = payload(bzimage)
    kernel = b""
    if packed.startswith(XZ):
        kernel = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(ZSTD):
        kernel = _unzstd(packed)
    return kernel if kernel.startswith(ELF) else bzimage


def payload(bzimage: bytes) -> bytes:
    """The compressed kernel, and four bytes more: its size when it is unpacked."""
    offset, size = struct.unpack_from("<II", bzimage, PAYLOAD_OFFSET)
    start = (bzimage[SETUP_SECTORS] + 1) * 512 + offset
    return bzimage[start : start + size]


def _unzstd(packed: bytes) -> bytes:
    # zstd complains about the four bytes after the stream, when the kernel is written already
    done = subprocess.run(["zstd", "-dcq"], input=packed, capture_output=True, check=False)
    return done.stdout
