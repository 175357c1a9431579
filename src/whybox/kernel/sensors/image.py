"""Which programs were running when something was seen of them (``sensors/image.h``)."""

import struct
from collections.abc import Iterator

from whybox.kernel.bpf.objects import Object
from whybox.kernel.host import c_string
from whybox.kernel.usersymbols import Image, ImageKey

_KEY, _IMAGE = struct.Struct("=II"), struct.Struct("=QQQ16s")


class Images:
    """What an object tells of programs: at once, and at any time those seen lately."""

    def __init__(self, object: Object) -> None:
        self._seen = object.map("images")
        self._ring = object.ring("news")
        self.descriptor = object.map("news").fd
        """It can be read when there is news."""

    def news(self) -> Iterator[tuple[ImageKey, Image]]:
        """Those that are new."""
        for raw in self._ring.read():
            yield image(raw[: _KEY.size], raw[_KEY.size :])

    def seen(self) -> Iterator[tuple[ImageKey, Image]]:
        """The latest of all."""
        for key, value in self._seen.items():
            yield image(key, value)


def image(key: bytes, value: bytes) -> tuple[ImageKey, Image]:
    """Decode ``struct image_key`` and ``struct image``."""
    tgid, exec = _KEY.unpack(key)
    stack, code, inode, comm = _IMAGE.unpack(value[: _IMAGE.size])
    name = c_string(comm)
    found = Image(start_stack=stack, start_code=code, inode=inode, comm=name)
    return ImageKey(tgid=tgid, exec=exec), found
