"""The contract of a case, checked for every folder of the catalogue."""

import inspect
import re
from pathlib import Path

import msgspec
import pytest

from whybox import cases
from whybox.lab.prove import load as load_lab
from whybox.model import Severity

FOLDER = Path(cases.__file__).parent
HEADINGS = [
    "What you see",
    "What happens in the kernel",
    "See it by hand",
    "Cure",
    "When it is not a problem",
    "Kernel notes",
    "References",
]


@pytest.fixture(params=cases.names())
def name(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


def test_there_are_cases() -> None:
    assert len(cases.names()) >= 7


def test_a_folder_holds_just_its_files(name: str) -> None:
    found = {f.name for f in (FOLDER / name).iterdir() if f.name != "__pycache__"}
    assert {"__init__.py", "probe.py", "lab.py", "README.md"} <= found
    assert all(f.endswith((".py", ".md", ".bpf.c", ".bpf.o")) for f in found)
    assert (FOLDER / name / "__init__.py").read_text() == ""


def test_the_name_is_area_and_state(name: str) -> None:
    area, state = name.split("/")
    assert area in cases.AREAS
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", state)
    assert not state.startswith(("no_", "fix_", "disallow_"))


def test_the_page_has_the_fixed_headings_in_order(name: str) -> None:
    page = Path(cases.readme(name)).read_text()
    lines = page.splitlines()
    assert lines[0] == f"# {cases.load(name).title}"
    assert [line[3:] for line in lines if line.startswith("## ")] == HEADINGS
    assert "TODO" not in page


def test_the_case_asks_in_two_languages(name: str) -> None:
    case = cases.load(name)
    assert case.question.endswith("?")
    assert re.search(r"[\u4e00-\u9fff]", case.question_zh)
    assert case.lesson


def test_observe_is_a_generator_with_one_yield(name: str) -> None:
    case = cases.load(name)
    assert inspect.isgeneratorfunction(case.observe)
    source = inspect.getsource(case.observe)
    assert len(re.findall(r"^\s*yield\b", source, re.MULTILINE)) == 1


def test_an_observation_can_be_kept(name: str) -> None:
    """A recording needs a schema for every observation."""
    assert msgspec.json.schema(cases.load(name).observation)


def test_what_a_case_explains_can_exist(name: str) -> None:
    for other in cases.load(name).explains:
        assert other.partition("/")[0] in cases.AREAS


def test_a_lab_has_look_alikes(name: str) -> None:
    lab = load_lab(name)
    assert len(lab.look_alikes) >= 2
    assert lab.window_seconds > 0
    for other in lab.also:
        assert other in cases.names()


def test_the_catalogue_is_ordered_by_area() -> None:
    areas = [name.partition("/")[0] for name in cases.names()]
    assert areas == sorted(areas, key=cases.AREAS.index)


def test_severities_are_ordered() -> None:
    assert Severity.CRITICAL.rank > Severity.WARNING.rank > Severity.INFO.rank
