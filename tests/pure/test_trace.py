"""The contract of a question and of a sensor, checked for every one."""

import importlib
import pkgutil
import re
from pathlib import Path

import msgspec
import pytest

from whybox import trace
from whybox.kernel import sensors
from whybox.kernel.bpf.objects import SENSORS as FOLDER
from whybox.kernel.bpf.objects import Cost, Spec
from whybox.trace.question import Answered, Begin, End, Happened, Noted
from whybox.views import trace as views

SENSORS = Path(FOLDER)
SOURCES = sorted(SENSORS.glob("*.bpf.c"))


def specs() -> list[Spec]:
    found = []
    for module in pkgutil.iter_modules(sensors.__path__):
        values = vars(importlib.import_module(f"{sensors.__name__}.{module.name}")).values()
        found += [value for value in values if isinstance(value, Spec)]
    return found


@pytest.fixture(params=sorted(trace.QUESTIONS))
def name(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


def test_every_question_has_a_module_and_every_module_is_a_question() -> None:
    apart = {"question", "ask", "session", "membership"}
    modules = {module.name for module in pkgutil.iter_modules(trace.__path__)} - apart
    assert set(trace.QUESTIONS) <= modules


def test_a_question_can_be_shown(name: str) -> None:
    question, view = trace.load(name), views.view(name)
    assert callable(view.answer)
    assert bool(question.events) == hasattr(view, "event")
    for form, draw in views.pictures(name).items():
        assert re.fullmatch(r"[a-z]+", form)
        assert callable(draw)


def test_a_machine_can_read_it(name: str) -> None:
    question = trace.load(name)
    for kind in (question.answer, *question.events):
        assert msgspec.json.schema(kind)


def test_a_question_says_in_one_line_what_it_answers(name: str) -> None:
    assert len(trace.QUESTIONS[name]) < 80


def test_every_object_belongs_to_one_sensor() -> None:
    assert sorted({spec.name for spec in specs()}) == [f.name.split(".")[0] for f in SOURCES]


@pytest.mark.parametrize("spec", specs(), ids=lambda s: s.name)
def test_an_object_says_what_it_hooks_and_what_it_falls_back_to(spec: Spec) -> None:
    source = (SENSORS / f"{spec.name}.bpf.c").read_text()
    for include in re.findall(r'#include "(\w+\.h)"', source):
        beside = SENSORS / include
        source += beside.read_text() if beside.exists() else ""
    for function in (*(f for group in spec.programs for f in group), *spec.optional):
        assert function in source
    assert len(spec.falls_back.split()) >= 3


@pytest.mark.parametrize("source", SOURCES, ids=lambda f: f.name)
def test_a_program_is_under_both_licences(source: Path) -> None:
    text = source.read_text()
    assert text.startswith("/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */")
    assert "LICENSE_SECTION;" in text


@pytest.mark.parametrize("source", SOURCES, ids=lambda f: f.name)
def test_a_program_has_no_atomic_operation_that_linux_5_10_lacks(source: Path) -> None:
    """Before commit 981f94c3e921 (5.12) there was addition, and its result was not to be had."""
    for line in source.read_text().splitlines():
        assert not re.search(r"__sync_(?!fetch_and_add)|=.*__sync_|return .*__sync_", line), line


COST = Cost(run_ns=2_000_000, runs=1000, missed=0)


def test_the_first_line_says_what_is_attached_and_what_cannot_be_seen() -> None:
    begin = Begin(
        question="runqueue", target="a\x1bb", seconds=2.0, attached=("tp/x",), notes=("no y",)
    )
    assert views.text("runqueue", begin) == [
        "runqueue of a\\x1bb for 2 s, attached: tp/x",
        "  but: no y",
    ]


def test_the_last_line_says_what_it_cost_and_what_was_lost() -> None:
    end = End(seconds=2.0, cpu_ms=12.4, programs=COST, lost=3)
    assert views.text("runqueue", end) == [
        "",
        "2.0 s, cost: 2 ms CPU in 1000 runs of its programs (2000 ns each), 12 ms CPU of whybox;"
        " 3 events were lost",
    ]
    unknown = views.text("runqueue", End(seconds=2.0, cpu_ms=1, programs=None, lost=0))
    assert "not counted by this kernel" in unknown[1]
    assert "no event was lost" in unknown[1]


def test_the_stream_tells_its_lines_apart() -> None:
    told = (
        Begin(question="x", target="y", seconds=1.0, attached=(), notes=()),
        Happened(event={"a": 1}),
        Noted(says="it ended"),
        Answered(answer={}),
        End(seconds=1.0, cpu_ms=1.0, programs=COST, lost=0),
    )
    kinds = [msgspec.json.decode(msgspec.json.encode(one))["kind"] for one in told]
    assert kinds == ["begin", "event", "note", "answer", "end"]
