"""Files are whole or absent, and what goes wrong is said in one line."""

from __future__ import annotations

import errno
import os

import pytest

from utils.files import InputError, atomic_write, make_folder, reports_input_errors


def test_content_appears_at_once_and_replaces_the_old(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_write(path, "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_one_line_and_the_old_file_survives(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with (
        pytest.raises(InputError, match=r"cannot write .*file\.bin: the disk is full") as caught,
        atomic_write(path) as file,
    ):
        file.write(b"new")

    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_and_a_file_in_the_way(tmp_path):
    with (
        pytest.raises(InputError, match="cannot write"),
        atomic_write(tmp_path / "absent" / "file"),
    ):
        pass

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file is in the way"):
        make_folder(tmp_path / "file" / "folder")


def test_input_errors_become_exit_code_one_and_bugs_stay_bugs(capsys):
    @reports_input_errors
    def user_error(argv=None):
        raise InputError("what, where, what to do")

    @reports_input_errors
    def bug(argv=None):
        raise ZeroDivisionError

    assert user_error([]) == 1
    assert capsys.readouterr().err == "error: what, where, what to do\n"
    with pytest.raises(ZeroDivisionError):
        bug([])

    @reports_input_errors
    def stopped(argv=None):
        raise KeyboardInterrupt

    assert stopped([]) == 130
    assert capsys.readouterr().err == "interrupted\n"
