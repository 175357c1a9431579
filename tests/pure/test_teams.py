"""Who decided how many want a CPU at once, on a machine written as files."""

from pathlib import Path

import pytest

from tests.pure.runtimes_tree import Tree
from whybox.kernel.cpuwait import Thread
from whybox.kernel.teams import Team, teams

BUILD, SHELL, WORKERS = 200, 300, (301, 302)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A build starts a shell, which starts two workers."""
    tree = Tree(tmp_path)
    tree.task(BUILD, "/", comm="make", ppid=100)
    (tmp_path / f"proc/{BUILD}/task/{BUILD}").mkdir(parents=True)
    (tmp_path / f"proc/{BUILD}/exe").symlink_to("/usr/bin/make")
    tree.task(SHELL, "/box", comm="sh", ppid=BUILD)
    for worker in WORKERS:
        tree.task(worker, "/box", comm="cc1", ppid=SHELL)
    return tree


def of_processes(tree: Tree, inside: set[int]) -> list[Team]:
    busy = [Thread(tid=pid, run_ns=10**9, wait_ns=0) for pid in WORKERS]
    return [team for team in teams(tree.host, busy, inside) if team.processes]


def test_a_build_in_the_container_decided_it(tree: Tree) -> None:
    [team] = of_processes(tree, {BUILD, SHELL, *WORKERS})
    assert (team.leader.pid, team.leader.runtime, team.size) == (BUILD, "make", 2)


def test_a_build_that_made_the_container_did_not(tree: Tree) -> None:
    [team] = of_processes(tree, {SHELL, *WORKERS})
    assert (team.leader.pid, team.leader.runtime) == (SHELL, None)


def test_two_that_were_started_from_outside_are_no_team(tree: Tree) -> None:
    assert of_processes(tree, {*WORKERS}) == []
