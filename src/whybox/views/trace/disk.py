"""Block IO as lines, as histograms, and as a picture."""

from collections.abc import Iterator

from whybox.trace.disk import WORTH, Answer, Device, Io, Kind
from whybox.views import histogram, histogram_svg
from whybox.views.histogram import duration, lines, powers, size

_SAYS = {
    "throttled": "it waited for its limit",
    "queued": "it waited in queues, for no limit",
    "device": "the device itself took it",
}


def event(event: Io) -> str:
    """One slow IO."""
    parts = (
        (event.throttled_ns, "held back by a limit"),
        (event.queued_ns, "queued"),
        (event.device_ns, "in the device"),
    )
    spent = ", ".join(f"{duration(ns)} {what}" for ns, what in parts if ns > WORTH * event.took_ns)
    failed = ", FAILED" if event.failed else ""
    return (
        f"{event.at_ns / 1e9:.6f} {event.comm} {event.pid}: {event.kind} of {size(event.bytes)} on "
        f"{event.device} took {duration(event.took_ns)} ({spent}){failed}"
    )


def answer(answer: Answer) -> list[str]:
    """Device by device."""
    told = [line for device in answer.devices for line in _device(device)]
    if answer.unfinished:
        told.append(f"{answer.unfinished} more were issued to a device and not seen to end")
    return told or ["none of its IO reached a disk: it slept, or lived on what is in memory"]


def _device(device: Device) -> Iterator[str]:
    number = f"{device.major}:{device.minor}"
    yield number if device.name is None else f"{device.name} ({number})"
    yield from (f"  {_kind(kind)}" for kind in device.kinds)
    yield from _where(device)
    for bound in device.limits:
        value = size(bound.value) if bound.what.endswith("bytes") else f"{bound.value} IOs"
        yield f"  limit on {bound.what.split()[0]}s: {value} a second, by {bound.file}"
    yield (
        f"  everybody else: {device.others_count} IOs of {size(device.others_bytes)} on the same "
        "device"
    )
    for title, buckets, labels in _histograms(device):
        yield f"  {title}:"
        yield from (f"    {line}" for line in lines(buckets, labels))


def _kind(kind: Kind) -> str:
    said = f"{kind.count} {kind.kind}{'s' if kind.count != 1 else ''}"
    if kind.kind in ("flush", "other") and kind.count != 1:
        said = f"{kind.count} {'flushes' if kind.kind == 'flush' else 'others'}"
    if kind.bytes:
        said += f", {size(kind.bytes)}"
    if kind.device_ns is not None and kind.count:
        waits = (kind.throttled_ns or 0) + (kind.queued_ns or 0)
        said += (
            f": {duration(kind.device_ns / kind.count)} in the device on average after "
            f"{duration(waits / kind.count)} of waiting, {duration(kind.longest_ns or 0)} at most"
        )
    return said + (f", {kind.errors} FAILED" if kind.errors else "")


def _where(device: Device) -> Iterator[str]:
    if device.wait is None:
        return
    spent = {
        "throttled": sum(kind.throttled_ns or 0 for kind in device.kinds),
        "queued": sum(kind.queued_ns or 0 for kind in device.kinds),
        "device": sum(kind.device_ns or 0 for kind in device.kinds),
    }
    whole = sum(spent.values())
    shares = ", ".join(f"{100 * ns / whole:.0f} % {name}" for name, ns in spent.items())
    held = sum(kind.throttled for kind in device.kinds)
    held_back = f"; a limit held {held} IOs back" if held else ""
    yield f"  {_SAYS[device.wait]}: {shares}{held_back}"


def _histograms(device: Device) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    latencies = powers(1000, len(device.device_buckets))
    if sum(device.device_buckets):
        yield "time in the device", device.device_buckets, latencies
    if sum(device.wait_buckets[1:]):
        yield "wait before it", device.wait_buckets, latencies
    if sum(device.size_buckets):
        sizes = [histogram.size(512 << n) for n in range(len(device.size_buckets))]
        yield "size", device.size_buckets, sizes


def _svg(answer: Answer, title: str) -> str:
    """The time from submission to completion is two histograms: the longer one is drawn."""
    if not answer.devices:
        return histogram_svg.svg([], [], title)
    device = answer.devices[0]
    waited = device.wait in ("throttled", "queued")
    buckets = device.wait_buckets if waited else device.device_buckets
    name = device.name or f"{device.major}:{device.minor}"
    return histogram_svg.svg(
        buckets,
        powers(1000, len(buckets)),
        title,
        subtitle=f"{name}: {'wait before the device' if waited else 'time in the device'}",
        across="length",
        up="IOs",
    )


PICTURES = {"svg": _svg}
