"""Flame graphs: sound XML, the right shares, and names that can do no harm."""

import json
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from whybox.trace.hot import Stack
from whybox.views import flame
from whybox.views.flamepage import SCRIPT

UNIT = flame.Unit(speedscope="none", shown=lambda weight: f"{weight} samples")
NASTY = "<script>alert('&\"')</script>\x1b[31m\n\u202e\ufffe;]]>"
STACKS = (
    Stack(process="web", frames=("main", "work", "read_[k]"), weight=60),
    Stack(process="web", frames=("main", "idle"), weight=30),
    Stack(process="cron", frames=("[cron+0x10]", "js_[j]"), weight=10),
)
SVG = "{http://www.w3.org/2000/svg}"


def boxes(picture: str) -> dict[str, ElementTree.Element]:
    root = ElementTree.fromstring(picture)
    return {g.attrib["data-n"]: g for g in root.iter(f"{SVG}g") if g.get("class") == "f"}


def test_each_frame_is_as_wide_as_its_share() -> None:
    found = boxes(flame.svg(STACKS, "web", UNIT))
    shares = {name: float(box.attrib["data-w"]) for name, box in found.items()}
    assert shares == {
        "all": 1.0,
        "web": 0.9,
        "cron": 0.1,
        "main": 0.9,
        "work": 0.6,
        "idle": 0.3,
        "read": 0.6,
        "[cron+0x10]": 0.1,
        "js": 0.1,
    }
    assert found["idle"].attrib["data-x"] == "0.600000"  # beside its larger sibling
    title = found["work"].find(f"{SVG}title")
    assert title is not None
    assert title.text == "work — 60 samples, 60.00 %"


def test_frames_of_the_kernel_have_a_hue_of_their_own() -> None:
    kernel = flame.colour("read_[k]", 3, UNIT)
    user = flame.colour("read", 3, UNIT)
    assert int(kernel[5:], 16) > int(kernel[1:3], 16)  # blue
    assert int(user[5:], 16) < int(user[1:3], 16)  # warm
    assert flame.colour("read_[k]", 9, UNIT) == kernel


def test_a_picture_needs_nothing_from_elsewhere() -> None:
    for picture in (flame.svg(STACKS, "x", UNIT), flame.html(STACKS, "x", UNIT)):
        links = set(re.findall(r"https?://[^\"' )>]+", picture))
        assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}
        assert not re.search(r"(src|href|@import|url\()", picture)


def test_the_script_reads_the_same_in_svg_and_html() -> None:
    assert "<" not in SCRIPT
    assert "&" not in SCRIPT
    assert "]]>" not in SCRIPT


def test_a_name_from_a_container_stays_a_name() -> None:
    stacks = (Stack(process=NASTY, frames=(NASTY,), weight=1),)
    svg, page = flame.svg(stacks, NASTY, UNIT), flame.html(stacks, NASTY, UNIT)
    ElementTree.fromstring(svg)
    for picture in (svg, page):
        assert picture.count("<script>") == 1
        assert picture.count("</script>") == 1
        assert "\x1b" not in picture
        assert "\u202e" not in picture
        assert "\ufffe" not in picture


@given(
    st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30), st.integers(0, 99)), max_size=5)
)
def test_any_names_make_sound_xml(rows: list[tuple[str, str, int]]) -> None:
    stacks = [Stack(process=one, frames=(two, one), weight=weight) for one, two, weight in rows]
    ElementTree.fromstring(flame.svg(stacks, "title", UNIT))
    for line in flame.collapsed(stacks).splitlines():
        assert re.fullmatch(r"[^\n]+ \d+", line)
    json.loads(flame.speedscope(stacks, "title", UNIT))


def test_no_stack_at_all_is_an_empty_picture() -> None:
    assert boxes(flame.svg((), "nothing", UNIT)) == {}


def test_a_huge_answer_is_a_picture_of_bounded_size() -> None:
    stacks = [
        Stack(process=f"p{n % 7}", frames=tuple(f"f{n}-{d}" for d in range(400)), weight=1)
        for n in range(500)
    ]
    picture = flame.svg(stacks, "huge", UNIT)
    assert len(boxes(picture)) <= 15_000
    assert len(picture) < 10_000_000


def test_collapsed_is_what_flamegraph_pl_reads() -> None:
    assert flame.collapsed(STACKS).splitlines() == [
        "web;main;work;read_[k] 60",
        "web;main;idle 30",
        "cron;[cron+0x10];js_[j] 10",
    ]
    odd = (Stack(process="a;b c\n", frames=(), weight=2),)
    assert flame.collapsed(odd) == "a:b c\\n 2\n"


def test_speedscope_has_the_samples_and_their_weights() -> None:
    file = json.loads(flame.speedscope(STACKS, "web", UNIT))
    assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    [profile] = file["profiles"]
    names = [frame["name"] for frame in file["shared"]["frames"]]
    assert profile["type"] == "sampled"
    assert profile["unit"] == "none"
    assert profile["weights"] == [60, 30, 10]
    assert profile["endValue"] == 100
    assert [names[n] for n in profile["samples"][0]] == ["web", "main", "work", "read_[k]"]
