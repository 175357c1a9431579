"""The layers of the house: who may import whom."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "whybox"
MODULES = sorted(SOURCE.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The modules of whybox that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("whybox.") for name in found if name.startswith("whybox.")}


def forbidden(file: Path) -> tuple[str, ...]:
    """The prefixes that a file may not import, by its place in the house."""
    place = file.relative_to(SOURCE).parts
    outer = ("cli", "views", "record", "agent", "trace")
    if place[0] == "kernel":
        return (*outer, "runtimes", "cases", "lab", "model", "diagnose", "change", "needs")
    if place[0] in ("model.py", "change.py"):
        return (*outer, "runtimes", "cases", "lab", "diagnose", "needs")
    if place[-1] == "probe.py":
        return (*outer, "runtimes", "cases", "lab", "diagnose")
    if place[0] == "cases" and place[-1] == "lab.py":
        return (*outer, "runtimes", "cases", "diagnose")
    return {
        "diagnose.py": (*outer, "runtimes", "cases", "lab"),
        "runtimes": (*outer, "cases", "lab", "diagnose"),
        "views": ("cli", "record", "runtimes", "cases", "lab", "diagnose"),
        "record": ("cli", "views", "runtimes", "lab", "trace"),
        "trace": ("cli", "views", "record", "runtimes", "cases", "lab", "diagnose", "model"),
        "lab": (*outer, "runtimes"),
    }.get(place[0], ())


@pytest.mark.parametrize("file", MODULES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_a_module_imports_only_what_its_layer_allows(file: Path) -> None:
    barred = forbidden(file)
    wrong = {n for n in imported(file) if n.partition(".")[0] in barred}
    assert not wrong, f"{file.relative_to(SOURCE)} imports {sorted(wrong)}"


def test_views_read_no_kernel_file() -> None:
    """A view may know kernel's data types and how text is made harmless, nothing that reads."""
    allowed = {"kernel.host", "kernel.host.printable", "kernel.target", "kernel.target.Target"}
    allowed |= {"kernel.drops", "kernel.drops.Drop", "kernel.drops.Flow"}
    allowed |= {"kernel.hops", "kernel.hops.Hop"}
    for file in (SOURCE / "views").rglob("*.py"):
        read = {n for n in imported(file) if n.startswith("kernel")} - allowed
        assert not read, f"{file.name} imports {sorted(read)}"


def test_nothing_on_the_diagnosing_path_starts_a_program() -> None:
    """Observing must not fork: the modules that could are not even imported."""
    observing = [*(SOURCE / "kernel").rglob("*.py"), *(SOURCE / "trace").rglob("*.py")]
    for file in [*observing, *SOURCE.glob("cases/*/*/probe.py")]:
        tree = ast.parse(file.read_text())
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not names & {"subprocess", "multiprocessing", "pyroute2", "rich"}, file
