"""A way that was walked, in text and as a picture."""

import xml.etree.ElementTree as ET

from whybox.model import Hop
from whybox.views import path, path_svg

HOPS = (
    Hop(where="the container", name="route", says="over eth0"),
    Hop(where="the host", name="FORWARD", says="dropped <by> a & rule", broken=True),
    Hop(where="the host", name="a\x1b[31m", says="up"),
    Hop(where="the container", name="route", says="back", back=True),
)


def test_each_namespace_is_said_once_where_it_is_entered() -> None:
    assert path.drawn(HOPS) == [
        "the container",
        "  │  route      over eth0",
        "the host",
        "  ✗  FORWARD    dropped <by> a & rule",
        "  │  a\\x1b[31m  up",
        "and the answer:",
        "the container",
        "  │  route      back",
    ]


def test_no_way_is_no_lines() -> None:
    assert path.drawn(()) == []


def test_the_picture_is_well_formed_and_harmless() -> None:
    drawn = path_svg.svg(HOPS, "x\x1b: <title>")
    root = ET.fromstring(drawn)
    kinds = [each.get("class") for each in root.iter() if each.tag.endswith("circle")]
    assert kinds == ["hop", "broken", "hop", "hop"]
    assert "\x1b" not in drawn
    columns = [each for each in root.iter() if each.get("class") == "where"]
    assert [each.text for each in columns] == ["the container", "the host"]
