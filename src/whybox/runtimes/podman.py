"""What podman knows of its containers, over the Docker API of ``podman system service``.

podman runs no daemon: where that socket is not switched on, there is nobody to ask.
"""

from typing import ClassVar

from whybox.runtimes.docker import Docker, Inspected


class Podman(Docker):
    """The podman of the machine (root's)."""

    runtime: ClassVar[str] = "podman"
    socket: ClassVar[str] = "/run/podman/podman.sock"
    variable: ClassVar[str] = "CONTAINER_HOST"
    parent: ClassVar[str] = "/libpod_parent"
    slice: ClassVar[str] = "machine.slice"
    prefix: ClassVar[tuple[str, str]] = ("libpod-", "libpod-")

    def until_now(self) -> str:
        """podman 4.3 takes an ``until`` in seconds for long ago, and says nothing (measured)."""
        return "stream=false"

    def command(self, known: Inspected) -> tuple[str, ...]:
        """Of a program without arguments podman 4.3 says its name as its argument (measured)."""
        whole = super().command(known)
        return whole[:1] if whole[1:] == whole[:1] else whole
