"""What a container is made of, for people."""

from whybox.anatomy import Anatomy, Interface, Limit, Namespace, Rights, Root
from whybox.kernel.host import printable
from whybox.views import entrances
from whybox.views.text import Style, life

#: A table of mounts longer than this is cut; ``-o json`` has them all.
MOST_MOUNTS = 24


def page(seen: Anatomy, style: Style) -> str:
    """All parts, each under its own heading."""
    target = seen.target
    heading = f"{target.name}   {target.runtime} {target.short_id}"
    words = [w for w in (target.image, target.command, life(target)) if w]
    blocks = [style.paint(printable(heading), "1") + "   " + printable("  ".join(words))]
    blocks.append(_block("namespaces", [_namespace(one) for one in seen.namespaces], style))
    blocks.append(_block("limits", [_limit(one) for one in seen.limits], style))
    places = [f"{p.controller:<14} v{p.version}  {p.directory}" for p in seen.groups]
    blocks.append(_block("control groups", places, style))
    blocks.append(_block("root file system", _root(seen.root), style))
    blocks.append(_block("mounts", _mounts(seen), style))
    blocks.append(_block("rights", _rights(seen.rights), style))
    blocks.append(_block("network", _network(seen.network), style))
    if seen.entrances is not None:
        blocks.append(_block("published ports", entrances.lines(seen.entrances), style))
    blocks.append(_block("processes", list(seen.processes), style))
    blocks.append(_block("when it is stopped", list(seen.stop), style))
    if seen.gaps:
        blocks.append(_block("not seen", list(seen.gaps), style))
    return "\n\n".join(blocks)


def _block(title: str, lines: list[str], style: Style) -> str:
    body = "\n".join(f"  {printable(line)}" for line in lines) or "  nothing"
    return f"{style.paint(title, '1;36')}\n{body}"


def _namespace(one: Namespace) -> str:
    shared = f" with {', '.join(one.shared_with)}" if one.shared_with else ""
    return f"{one.kind:<8}{one.of + shared:<28}{'' if one.inode is None else one.inode}"


def _limit(one: Limit) -> str:
    value = "unlimited" if one.effective is None else _amount(one.resource, one.effective)
    used = "" if one.used is None else f", {_amount(one.resource, one.used)} used"
    source = "" if one.set_by is None else f", set by {one.set_by}"
    return f"{one.resource:<8}{value}{used}{source}{' (an ancestor)' if one.ancestor else ''}"


def _amount(resource: str, value: float) -> str:
    if resource == "memory":
        return f"{value / 2**20:.1f} MiB"
    return f"{value:g} cores" if resource == "cpu" else f"{value:g}"


def _root(root: Root | None) -> list[str]:
    if root is None:
        return []
    lines = [f"{root.fstype} from {root.source}{', read-only' if root.read_only else ''}"]
    if root.upper is not None:
        lines += [f"upper   {root.upper}", f"layers  {len(root.lower)} below it"]
        lines += [f"        {layer}" for layer in root.lower[:4]]
    return lines


def _mounts(seen: Anatomy) -> list[str]:
    lines = []
    for mount in seen.mounts[:MOST_MOUNTS]:
        mode = "ro" if "ro" in mount.options else "rw"
        source = mount.source if mount.root == "/" else f"{mount.source}{mount.root}"
        lines.append(f"{mode}  {mount.mountpoint:<32} {mount.fstype:<10} {source}")
    more = len(seen.mounts) - MOST_MOUNTS
    return [*lines, f"… and {more} more (-o json has them all)"] if more > 0 else lines


def _rights(rights: Rights | None) -> list[str]:
    if rights is None:
        return []
    beyond = ", ".join(rights.beyond_default) or "none"
    return [
        f"user           {rights.uid}:{rights.gid}, maps uid {rights.uid_map or 'unknown'}",
        f"capabilities   {', '.join(rights.effective) or 'none'}",
        f"beyond default {beyond}",
        f"seccomp        {rights.seccomp}, no_new_privs {'on' if rights.no_new_privs else 'off'}",
        f"label          {rights.security_label or 'none'}",
        f"oom_score_adj  {rights.oom_score_adj}, open files {rights.open_files or 'unknown'}",
    ]


def _network(network: tuple[Interface, ...] | None) -> list[str]:
    if network is None:
        return ["the host's own"]
    return [line for interface in network for line in _interface(interface)]


def _interface(one: Interface) -> list[str]:
    state = "up" if one.up else "DOWN"
    carrier = ", no carrier" if one.carrier is False else ""
    addresses = ", ".join(one.addresses) or "no address"
    lines = [f"{one.name} ({one.kind or 'device'}, {state}{carrier}, mtu {one.mtu})  {addresses}"]
    hops = [
        f"default via {one.gateway}" if one.gateway else "",
        f"host end {one.host_end}" if one.host_end else "",
        f"on {one.bridge}" if one.bridge else "",
        f"gateway at {one.gateway_at}" if one.gateway_at else "",
        {True: "which forwards", False: "which does NOT forward", None: ""}[one.forwards],
        f"the other side was not seen: {one.unseen}" if one.unseen else "",
    ]
    way = " → ".join(hop for hop in hops if hop)
    return [*lines, f"   {way}"] if way else lines
