"""Files are whole or absent, and what goes wrong is said in one line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from utils.files import (
    UserError,
    atomic_write,
    make_folder,
    read_bytes,
    read_json,
    reports_user_errors,
    write_json,
)

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def raising(error: BaseException):
    def work(*_):
        raise error

    return work


def test_content_appears_at_once_and_replaces_the_old(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_write(path, "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (raising(KeyboardInterrupt()), KeyboardInterrupt, None),
        (lambda patch: Path("other.json").read_text(), FileNotFoundError, "other.json"),
        (raising(NO_SPACE), UserError, "cannot write .*file.bin: No space left on device"),
        (
            lambda patch: patch.setattr(os, "fsync", raising(NO_SPACE)),
            UserError,
            "cannot write .*file.bin: No space left on device",
        ),
    ],
    ids=["interrupted", "another file", "while writing", "while flushing"],
)
def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(
    tmp_path, monkeypatch, body, error, words
):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(error, match=words) as caught, atomic_write(path) as file:
        file.write(b"half")
        body(monkeypatch)

    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "null").symlink_to(os.devnull)
    for name, words in (
        ("absent/file", "cannot write .*absent/file: No such file"),
        ("n" * 256, "cannot write .*: File name too long"),
        ("null", "no regular file"),  # a device is not replaced
    ):
        with pytest.raises(UserError, match=words), atomic_write(tmp_path / name):
            pass

    with pytest.raises(UserError, match="cannot write .*folder: Not a directory"):
        make_folder(tmp_path / "null" / "folder")

    with atomic_write(tmp_path / ("n" * 255)) as file:  # the longest name
        file.write(b"new")
    assert (tmp_path / "null").is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_a_path_that_is_not_utf8_survives_in_json(tmp_path):
    name = os.fsdecode(b"a\xff.png")
    write_json(tmp_path / "list.json", {"file": name, "dash": "–"})
    found = json.loads((tmp_path / "list.json").read_text(encoding="utf-8"))
    assert found == {"file": name, "dash": "–"}


def test_json_may_begin_with_the_mark_of_windows(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', "utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_json_is_strict_in_one_line_or_many(tmp_path):
    content = {"nan": float("nan"), "rows": [(1, float("inf")), {"x": 0.5}]}
    write_json(tmp_path / "long.json", content)
    write_json(tmp_path / "short.json", content, indent=None)
    texts = [(tmp_path / f"{name}.json").read_text() for name in ("long", "short")]

    assert texts[0].count("\n") > 9 and texts[0].endswith("}\n") and "\n" not in texts[1]
    for text in texts:
        found = json.loads(text, parse_constant=pytest.fail)
        assert found == {"nan": None, "rows": [[1, None], {"x": 0.5}]}


MEMORY = "there is not enough memory"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("what, where, what to do"), 1, "what, where, what to do"),
        (PermissionError(errno.EACCES, "Not permitted", "/x/y.pt"), 1, "/x/y.pt: Not permitted"),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"nnn"), 1, "nnn: File name too long"),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
        (MemoryError("Unable to allocate 7 PiB\nfor an array"), 1, MEMORY),
        (RuntimeError("[enforce fail]\nDefaultCPUAllocator: can't allocate memory"), 1, MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate\n2 GiB"), 1, MEMORY),
        (ImportError("lib.so: failed to map segment from shared object"), 1, MEMORY),
        (cv2.error("(-4:Insufficient memory) Failed to allocate"), 1, MEMORY),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("shapes differ"), None, ""),  # bugs stay bugs
        (cv2.error("assertion"), None, ""),
        (ZeroDivisionError(), None, ""),
    ],
)
def test_errors_of_users_and_machines_are_one_line(error, code, message, capsys):
    main = reports_user_errors(raising(error))
    if code is None:
        with pytest.raises(type(error)):
            main([])
        return

    assert main([]) == code
    line = capsys.readouterr().err
    assert line.startswith(f"error: {message}" if code == 1 else message) and line.count("\n") == 1


def test_torch_and_numpy_and_links_are_understood(tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    works = (
        lambda argv: torch.empty(1 << 55),
        lambda argv: np.empty(1 << 55),
        lambda argv: (tmp_path / "loop").read_bytes(),
    )
    for work in works:
        assert reports_user_errors(work)([]) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("error: ") and errors.count("\n") == 1


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from utils.files import atomic_write, reports_user_errors

@reports_user_errors
def main(argv=None):
    for i in range(20_000):
        print(i, "a – b")
    print("to stderr –", file=sys.stderr)
    with atomic_write({out!r}, "w") as file:
        file.write("whole")
    return 0

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("redirection", "code", "errors"),
    [
        ("| head -1", 1, ""),
        ("| cat", 0, "to stderr –\n"),
        (">/dev/full", 1, "error: No space left on device\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_output_that_fails_is_no_traceback(tmp_path, redirection, code, errors, encoding):
    script = SCRIPT.format(root=str(ROOT), out=str(tmp_path / "file"))
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {redirection}', sys.executable, script],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        encoding="utf-8",
    )

    assert done.returncode == code
    assert done.stderr == (errors if encoding == "utf-8" else errors.replace("–", r"\u2013"))
    assert (tmp_path / "file").exists() == (code == 0)


def test_a_line_break_in_a_name_stays_within_the_line():
    assert str(UserError("a\nb\x1b[1m\u2028é: no such file")) == r"a\nb\x1b[1m\u2028é: no such file"


def test_a_device_is_not_read(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="list .*link is a device"):
        read_bytes(tmp_path / "link", "list")

    reading, writing = os.pipe()
    os.write(writing, b"once")
    os.close(writing)
    assert read_bytes(f"/dev/fd/{reading}") == b"once"
    os.close(reading)


FAILING = """
import sys
from utils import files
files.PATIENCE = float(sys.argv[1])

@files.reports_user_errors
def main(argv=None):
    raise files.UserError("no data")

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("rank", "patience", "spoken"),
    [("0", "60", True), (None, "60", True), ("1", "60", False), ("1", "0.1", True)],
)
def test_of_several_processes_the_first_speaks(rank, patience, spoken):
    """The others would say the same, and are ended before they do, unless the first goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING, patience],
        cwd=ROOT,
        env=os.environ | ({} if rank is None else {"RANK": rank}),
        stderr=subprocess.PIPE,
        text=True,
    )

    if not spoken:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.5)
        process.terminate()

    assert process.communicate(timeout=30)[1] == ("error: no data\n" if spoken else "")
