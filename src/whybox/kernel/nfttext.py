"""How a rule of nftables is written, about as ``nft`` lists it."""

from whybox.kernel import xtables
from whybox.kernel.netlink import attributes, text
from whybox.kernel.nftexpressions import CT_KEYS, META, VERDICT, Expression, ip, verdict

OPERATORS = ("", "!= ", "< ", "<= ", "> ", ">= ")
FIELDS = {
    (1, 9, 1): "ip protocol", (1, 12, 4): "ip saddr", (1, 16, 4): "ip daddr",
    (1, 8, 16): "ip6 saddr", (1, 24, 16): "ip6 daddr",
    (2, 0, 2): "sport", (2, 2, 2): "dport", (0, 12, 2): "ether type",
}  # fmt: skip


def rule_text(expressions: tuple[Expression, ...]) -> str:
    """About as nft lists it."""
    words: list[str] = []
    loaded = ""
    mask = b""
    for each in expressions:
        if each.name in ("meta", "payload", "ct", "fib"):
            loaded, mask = _subject(each), b""
        elif each.name == "bitwise":
            mask = each.value(4)
        elif each.name == "cmp":
            words.append(f"{loaded} {OPERATORS[each.number(2) % 6]}{_shown(loaded, each, mask)}")
        elif each.name == "lookup":
            words.append(f"{loaded} @{text(each.found.get(1, b''))}")
        elif each.name == "match":
            words.append(xtables.describe(text(each.found.get(1, b"")), each.found.get(3, b"")))
        elif (said := _said(each)) is not None:
            words.append(said)
    return " ".join(word for word in words if word)


def _said(each: Expression) -> str | None:
    if each.name == "immediate":
        data = attributes(each.found.get(2, b""))
        if VERDICT not in data:
            return None
        effect = verdict(data[VERDICT])
        return effect.verdict + (f" {effect.chain}" if effect.chain else "")
    if each.name == "target":
        return text(each.found.get(1, b""))
    if each.name == "nat":
        return "snat" if each.number(1) == 0 else "dnat"
    return each.name if each.name in ("reject", "masq", "redir", "limit", "queue") else None


def _subject(each: Expression) -> str:
    if each.name == "meta":
        return META.get(each.number(2), "meta")
    if each.name == "ct":
        return f"ct {CT_KEYS.get(each.number(2), '')}".strip()
    if each.name == "payload":
        place = (each.number(2), each.number(3), each.number(4))
        if place[0] == 1 and place[1] in (12, 16) and place[2] < 4:  # a prefix of whole bytes
            place = (1, place[1], 4)
        return FIELDS.get(place, "@" + ",".join(map(str, place)))
    return each.name


def _shown(subject: str, each: Expression, mask: bytes) -> str:
    value = each.value(3)
    if subject.endswith("name"):
        return text(value)
    if "addr" in subject and len(value) <= 16:
        bits = sum(byte.bit_count() for byte in mask) if mask else 8 * len(value)
        width = 4 if len(value) <= 4 else 16
        return ip(value.ljust(width, b"\0")) + (f"/{bits}" if bits < 8 * width else "")
    if subject in ("sport", "dport"):
        return str(int.from_bytes(value, "big"))
    if subject in ("l4proto", "ip protocol"):
        return {6: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6"}.get(value[0], str(value[0]))
    return "0x" + value.hex()
