"""Cures that several cases offer in the same words."""

from whybox.model import Cure, Safety

#: The host itself is short of memory, whatever a container may have.
FREE_HOST_MEMORY = Cure(
    advice=(
        "Free memory of the host, or keep some of it for this container (memory.low; in Kubernetes "
        "a memory request): whybox diagnose --all tells who else is pressed."
    ),
    safety=Safety.INSPECT,
)
