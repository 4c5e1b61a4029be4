"""The judge of odd inputs lets nothing pass that it should not."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.hostile.hostile import Trial, _judge, _said, _snapshot, damage
from tests.hostile.hostile_inputs import DAMAGES, USUAL, Case, all_cases

USAGE = "usage: test.py [-h]\n               [--data DIR]\ntest.py: error: unknown option\n"


@pytest.fixture
def judge(tmp_path):
    """judge(exit code, stderr, change) -> what is wrong with a process that did so."""
    folder = tmp_path / "trial"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "list.txt").write_text("as before")

    def run(code: int, stderr: str, change=lambda folder: None, script: str = "test.py") -> str:
        trial = Trial(0, Case(script, "a case", ()), folder, _snapshot(folder), 0.0)
        change(folder)
        _said(folder).write_text(stderr)
        return _judge(trial, code)

    return run


@pytest.mark.parametrize(
    ("code", "stderr"),
    [
        (0, ""),
        (0, "note: held in memory\npatches: face 5 of 10, 1.0 face/s\n"),
        (1, "error: what, where, what to do\n"),
        (2, USAGE),
    ],
)
def test_what_holds(judge, code, stderr):
    assert judge(code, stderr) == ""


@pytest.mark.parametrize(
    ("code", "stderr"),
    [
        (0, "libpng error: read error\n"),
        (0, "error: this went well\n"),
        (1, ""),
        (1, "error: one\nerror: two\n"),
        (1, "libpng error: read error\nerror: damaged\n"),
        (1, "Traceback (most recent call last):\nKeyError\n"),
        (2, "error: no usage\n"),
        (2, USAGE + "more\n"),
        (3, "error: one line\n"),
        (-11, ""),
        (-9, ""),
    ],
)
def test_what_does_not_hold(judge, code, stderr):
    assert judge(code, stderr) != ""


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "new").mkdir(),
        lambda folder: (folder / "data" / "list.txt").write_text("changed"),
        lambda folder: (folder / "data" / "list.txt").unlink(),
        lambda folder: (folder / "link").symlink_to("nothing"),
    ],
)
def test_a_failure_must_leave_everything_as_it_was(judge, change):
    assert "changed" in judge(1, "error: one line\n", change)


def test_a_success_may_write(judge):
    assert judge(0, "", lambda folder: (folder / "new").mkdir()) == ""


def test_an_unfinished_set_must_say_so(judge):
    def half(folder):
        (folder / "made").mkdir()
        (folder / "made" / "0.png").write_bytes(b"")

    def marked(folder):
        (folder / "made" / ".partial.json").write_text("{}")

    script = "dataset/createWFLW256.py"
    assert judge(1, "error: one\n", half, script) != ""
    assert judge(1, "error: one\n", lambda folder: marked(folder), script) == ""


def test_every_command_is_tried_and_no_case_twice():
    cases = list(all_cases())
    assert set(Counter(case.script for case in cases)) == set(USUAL) and len(cases) > 300
    assert len({(case.script, case.what, case.argv) for case in cases}) == len(cases)


@pytest.mark.parametrize("what", DAMAGES)
def test_damages_change_the_file(tmp_path, what):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    before = _snapshot(tmp_path), path.stat().st_mode
    DAMAGES[what](path)
    after = _snapshot(tmp_path), path.lstat().st_mode if path.is_symlink() or path.exists() else 0
    assert after != before


def test_random_damage_is_repeatable_and_of_all_kinds():
    data = random.Random(0).randbytes(2000)
    damaged = [damage(data, random.Random(number)) for number in range(60)]
    assert damaged == [damage(data, random.Random(number)) for number in range(60)]
    assert sum(one != data for one in damaged) > 55
    assert {len(one) > len(data) / 2 for one in damaged} == {True, False}
