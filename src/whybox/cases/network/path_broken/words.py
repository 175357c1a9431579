"""How each broken hop is told, and what mends it."""

from collections.abc import Callable

from whybox.change import Change, FilterRule, HostSysctl, IpForward, JoinBridge, LinkUp
from whybox.kernel.flow import Flow, Step
from whybox.model import Cure, Safety

RULE_ADVICE = "Take that rule away, or let what is wanted pass before it. Find out who made it."

#: What connect() says of a route that throws packets away (measured).
REFUSALS = {"EINVAL": "blackhole", "EHOSTUNREACH": "unreachable", "EACCES": "prohibit"}


def sentence(flow: Flow, step: Step) -> str:
    """The broken hop in one sentence."""
    return _SAID.get(step.fault or "", _other)(flow, step)


def _what(flow: Flow, step: Step) -> str:
    return f"the answer of {flow.to}" if step.way == "back" else f"what it sends to {flow.to}"


def _other(flow: Flow, step: Step) -> str:
    return f"At {step.name} in {step.space}: {step.says}."


def _filter(flow: Flow, step: Step) -> str:
    verb = "refuses" if step.fault == "refused" else "drops"
    question = "the ARP request before " if step.facts.get("arp") else ""
    rule = "" if step.rule is None else f": {step.rule.text}"
    return (
        f"At {step.name} in {step.space}, {step.rule} {verb} {question}{_what(flow, step)}{rule}."
    )


def _route(flow: Flow, step: Step) -> str:
    kind, off = REFUSALS.get(step.facts.get("errno", "")), step.facts.get("off")
    wanted = step.facts.get("to", "")
    if off:
        return f"The way ends in {step.space}: {off} is off, so there is no route to {wanted}."
    if kind is not None:
        return f"The route to {wanted} in {step.space} is of type {kind}."
    return f"There is no route to {wanted} in {step.space}."


def _way_back(flow: Flow, step: Step) -> str:
    source = step.facts.get("to", "")
    said = f"{flow.to} is reached, but there is no way back to {source} from {step.space}"
    if "router" in step.facts:
        return (
            f"{said}: {step.facts['router']} sends it out of {step.facts['oif']} with the "
            "container's own address, which no rule of POSTROUTING translates (MASQUERADE)."
        )
    return f"{said}."


def _hairpin(flow: Flow, step: Step) -> str:
    nat = next((each for each in flow.steps if each.kind == "nat" and each.way == "there"), None)
    by = "" if nat is None or nat.rule is None else f" ({nat.rule}: {nat.rule.text})"
    to, port = step.facts.get("to", ""), step.facts.get("port", "")
    if step.facts.get("meant"):
        return (
            f"At PREROUTING in {step.space} a NAT rule{by} sends what is for {flow.to} to {to}, "
            f"the container itself, and {port} does not give back what came in by it (hairpin "
            "mode is off). The rule matches more than it should: no destination, no interface."
        )
    return (
        f"{flow.to} leads back to the container itself{by}, and its bridge port {port} does not "
        "give back what came in by it: hairpin mode is off."
    )


def _unplugged(flow: Flow, step: Step) -> str:
    bridge = step.facts.get("bridge", "")
    return f"The host end {step.name} is not plugged into {bridge}, where the gateway is."


def _neighbour(flow: Flow, step: Step) -> str:
    who, link = step.facts.get("address", ""), step.facts.get("link", "")
    return f"In {step.space} nobody answers for {who} on {link}: no link address is known for it."


def _rp_filter(flow: Flow, step: Step) -> str:
    return (
        f"The reverse path filter (rp_filter) of {step.facts.get('iif')} in {step.space} drops "
        f"{_what(flow, step)}: its way back to {step.facts.get('source')} goes elsewhere."
    )


def _listener(flow: Flow, step: Step) -> str:
    return f"{flow.to} is reached in {step.space}, but on {step.name} {step.says}."


def _narrow_end(flow: Flow, step: Step) -> str:
    return (
        f"The wire {step.name} is narrower at its end: {step.says}. Longer packets are dropped "
        "without a word; TCP survives where the sender leaves the cutting to the device (GSO)."
    )


def _narrow(flow: Flow, step: Step) -> str:
    return f"Connections to {flow.to} open, but large transfers hang: in {step.space} {step.says}."


def _twice(flow: Flow, step: Step) -> str:
    return f"On the bridge {step.name} in {step.space}, {step.says}: who gets it is luck."


_SAID: dict[str, Callable[[Flow, Step], str]] = {
    "dropped": _filter,
    "refused": _filter,
    "suspect": _filter,
    "no_route": _route,
    "no_way_back": _way_back,
    "hairpin": _hairpin,
    "unplugged": _unplugged,
    "neighbour": _neighbour,
    "rp_filter": _rp_filter,
    "not_listening": _listener,
    "listens_elsewhere": _listener,
    "queue_full": _listener,
    "narrow_end": _narrow_end,
    "too_narrow": _narrow,
    "same_address": _twice,
    "same_mac": _twice,
}


def cures(flow: Flow, step: Step, near: tuple[str, ...]) -> tuple[Cure, ...]:
    """What mends it, the surest first; ``near``: where commands can be given as printed."""
    if step.fault != "rp_filter":
        return (_cure(step, near, *_mended(step)),)
    source, iif = step.facts.get("source"), step.facts.get("iif")
    back = f"Mend the way back: {step.space} must send what is for {source} over {iif}."
    loose = "Let the filter be loose, if answers are really meant to go another way."
    change = HostSysctl(key=f"net.ipv4.conf.{iif}.rp_filter", value="2")
    return (_cure(step, near, back, None, ()), _cure(step, near, loose, change, ()))


def _cure(
    step: Step, near: tuple[str, ...], advice: str, change: Change | None, commands: tuple[str, ...]
) -> Cure:
    if step.space not in near:
        change, commands = None, ()
        advice = f"In {step.space}: {advice[0].lower()}{advice[1:]}"
    return Cure(
        advice=advice,
        safety=Safety.MUTATING if change or commands else Safety.INSPECT,
        change=change,
        commands=commands,
    )


def rule_cure(step: Step) -> Cure:
    """Take away a rule that was found without anybody being named."""
    return Cure(advice=RULE_ADVICE, safety=Safety.MUTATING, change=_rule(step))


def _mended(step: Step) -> tuple[str, Change | None, tuple[str, ...]]:
    facts = step.facts
    link = facts.get("link", step.name)
    if step.rule is not None and step.fault in ("dropped", "refused", "suspect", "too_narrow"):
        return RULE_ADVICE, _rule(step), ()
    match step.fault:
        case "forwarding":
            six = HostSysctl(key="net.ipv6.conf.all.forwarding", value="1")
            change = six if ":" in facts.get("source", "") else IpForward()
            return "Let it forward: engines switch that on only when they start.", change, ()
        case "neighbour_table" if (facts.get("limit") or "").isdigit():
            room = str(4 * int(facts["limit"]))
            change = HostSysctl(key="net.ipv4.neigh.default.gc_thresh3", value=room)
            return "Make room for more neighbours, and find who has so many.", change, ()
        case "peer_off" | "link_off" | "bridge_off":
            inside = step.space == "the container"
            return f"Switch {link} on.", LinkUp(link, in_container=inside), ()
        case "unplugged":
            bridge = facts.get("bridge", "")
            return f"Plug {link} into {bridge}.", JoinBridge(link, bridge), ()
        case _:
            return _by_hand(step, link)


def _rule(step: Step) -> FilterRule | None:
    if step.rule is None or step.fault == "too_narrow":
        return None
    return FilterRule(
        table=step.rule.table,
        chain=step.rule.chain,
        number=step.rule.number,
        handle=step.rule.handle,
        in_container=step.space == "the container",
    )


def _by_hand(step: Step, link: str) -> tuple[str, Change | None, tuple[str, ...]]:
    facts = step.facts
    port = f"ip link set {link} type bridge_slave"
    match step.fault:
        case "no_way_back" if facts.get("iif"):
            source, iif = facts.get("to"), facts["iif"]
            command = f"iptables -t nat -A POSTROUTING -s {source} ! -o {iif} -j MASQUERADE"
            return "Translate its source; an engine does so when it is restarted.", None, (command,)
        case "hairpin" if not facts.get("meant"):
            own = facts.get("to")
            # What came from its own address would be dropped by the container as a martian.
            masked = f"iptables -t nat -A POSTROUTING -s {own} -d {own} -j MASQUERADE"
            advice = "Let the port give back what came in by it, with the host's address as source."
            return advice, None, (f"{port} hairpin on", masked)
        case "isolated":
            return "Let one of the ports speak to the others.", None, (f"{port} isolated off",)
        case "narrow_end":
            command = f"ip link set {link} mtu {facts.get('mtu')}"
            return "Give both ends of the wire the same MTU.", None, (command,)
        case "no_route" if facts.get("off"):
            off = facts["off"].split(", ")[0]
            up = LinkUp(off, in_container=step.space == "the container")
            return f"Switch {off} on; its routes were dropped with it.", up, ()
        case "same_address" | "same_mac":
            return f"Find out which of them should have {facts.get('address')}.", None, ()
        case _:
            return ADVICE.get(step.fault or "", "Mend that hop."), None, ()


#: What no command can do.
ADVICE = {
    "hairpin": "Give the NAT rule a destination (-d) or an interface (! -i).",
    "not_listening": "Let the program there listen on that port.",
    "listens_elsewhere": "Let the program there listen on all addresses.",
    "queue_full": "Find out why the program does not accept; a longer queue only delays.",
    "conntrack": "Raise net.netfilter.nf_conntrack_max, or find who opens so many.",
    "neighbour": "Find out who should have that address, and whether it is on and plugged in.",
    "no_carrier": "Switch on what is at the other end.",
}
