"""Files are whole or absent, and what goes wrong is said in one line."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal

import pytest

from utils.files import InputError, atomic_write, make_folder, reports_input_errors, write_json


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


def test_errors_of_the_body_are_not_blamed_on_the_target(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError, match="meta.json"), atomic_write(path, "w") as file:
        file.write((tmp_path / "meta.json").read_text())
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_within_the_body_names_the_target(tmp_path):
    path = tmp_path / "file.bin"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
        with pytest.raises(InputError, match="cannot write .*file.bin"), atomic_write(path) as file:
            file.write(bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)

    assert not list(tmp_path.iterdir())


def test_the_longest_name_can_be_written_and_a_longer_one_is_refused(tmp_path):
    path = tmp_path / ("n" * 255)
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"

    with (
        pytest.raises(InputError, match="the name is too long"),
        atomic_write(tmp_path / ("n" * 256)),
    ):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_not_replaced(tmp_path):
    (tmp_path / "null").symlink_to(os.devnull)
    with pytest.raises(InputError, match="no regular file"), atomic_write(tmp_path / "null"):
        pass
    assert (tmp_path / "null").is_symlink() and len(list(tmp_path.iterdir())) == 1


def test_a_path_that_is_not_utf8_survives_in_json(tmp_path):
    name = os.fsdecode(b"a\xff.png")
    write_json(tmp_path / "list.json", {"file": name, "dash": "–"})
    assert json.loads((tmp_path / "list.json").read_text(encoding="utf-8")) == {
        "file": name,
        "dash": "–",
    }


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
