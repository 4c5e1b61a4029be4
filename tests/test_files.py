"""Files are whole or absent, and what goes wrong is said in one line."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys

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
    reports_user_errors,
    write_json,
)


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
        pytest.raises(UserError, match=r"cannot write .*file\.bin: No space left") as caught,
        atomic_write(path) as file,
    ):
        file.write(b"new")

    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_and_a_file_in_the_way(tmp_path):
    with (
        pytest.raises(UserError, match="cannot write"),
        atomic_write(tmp_path / "absent" / "file"),
    ):
        pass

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*folder: Not a directory"):
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
        with pytest.raises(UserError, match="cannot write .*file.bin"), atomic_write(path) as file:
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
        pytest.raises(UserError, match="File name too long"),
        atomic_write(tmp_path / ("n" * 256)),
    ):
        pass

    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_not_replaced(tmp_path):
    (tmp_path / "null").symlink_to(os.devnull)
    with pytest.raises(UserError, match="no regular file"), atomic_write(tmp_path / "null"):
        pass
    assert (tmp_path / "null").is_symlink() and len(list(tmp_path.iterdir())) == 1


def test_a_path_that_is_not_utf8_survives_in_json(tmp_path):
    name = os.fsdecode(b"a\xff.png")
    write_json(tmp_path / "list.json", {"file": name, "dash": "–"})
    assert json.loads((tmp_path / "list.json").read_text(encoding="utf-8")) == {
        "file": name,
        "dash": "–",
    }


def test_json_is_strict_in_one_line_or_many(tmp_path):
    content = {"nan": float("nan"), "rows": [(1, float("inf")), {"x": 0.5}]}
    write_json(tmp_path / "long.json", content)
    write_json(tmp_path / "short.json", content, indent=None)
    texts = [(tmp_path / f"{name}.json").read_text() for name in ("long", "short")]

    assert texts[0].count("\n") > 9 and texts[0].endswith("}\n") and "\n" not in texts[1]
    for text in texts:
        assert json.loads(text, parse_constant=pytest.fail) == {
            "nan": None,
            "rows": [[1, None], {"x": 0.5}],
        }


def test_input_errors_become_exit_code_one_and_bugs_stay_bugs(capsys):
    @reports_user_errors
    def user_error(argv=None):
        raise UserError("what, where, what to do")

    @reports_user_errors
    def bug(argv=None):
        raise ZeroDivisionError

    assert user_error([]) == 1
    assert capsys.readouterr().err == "error: what, where, what to do\n"

    with pytest.raises(ZeroDivisionError):
        bug([])

    @reports_user_errors
    def stopped(argv=None):
        raise KeyboardInterrupt

    assert stopped([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y.pt"),
            "/x/y.pt: Permission denied",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"nnn"), "nnn: File name too long"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "not enough memory"),
        (MemoryError("Unable to allocate 7 PiB\nfor an array"), "not enough memory"),
        (RuntimeError("[enforce fail]\nDefaultCPUAllocator: can't allocate memory"), "not enough"),
        (RuntimeError("CUDA out of memory. Tried to allocate\n2 GiB"), "not enough memory"),
        (ImportError("lib.so: failed to map segment from shared object"), "not enough memory"),
        (cv2.error("(-4:Insufficient memory) Failed to allocate"), "not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, message, capsys):
    @reports_user_errors
    def main(argv=None):
        raise error

    assert main([]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), cv2.error("assertion"), ValueError("shapes differ")]
)
def test_other_errors_of_libraries_stay_bugs(error):
    @reports_user_errors
    def main(argv=None):
        raise error

    with pytest.raises(type(error)):
        main([])


def test_torch_and_numpy_and_links_are_understood(tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")

    for work in (
        lambda: torch.empty(1 << 55),
        lambda: np.empty(1 << 55),
        lambda: (tmp_path / "loop").read_bytes(),
        lambda: (tmp_path / ("n" * 300)).stat(),
    ):
        assert reports_user_errors(lambda argv=None, work=work: work())([]) == 1
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
import os, sys
from utils import files
files.PATIENCE = float(sys.argv[1])

@files.reports_user_errors
def main(argv=None):
    raise files.UserError("no data")

sys.exit(main())
"""


@pytest.mark.parametrize(("rank", "spoken"), [("0", True), ("1", False), (None, True)])
def test_of_several_processes_the_first_speaks(rank, spoken):
    """The others would say the same, and are ended before they do."""
    names = {} if rank is None else {"RANK": rank}
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING, "60"],
        cwd=ROOT,
        env=os.environ | names,
        stderr=subprocess.PIPE,
        text=True,
    )

    if not spoken:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.5)
        process.terminate()

    assert process.communicate(timeout=30)[1] == ("error: no data\n" if spoken else "")


def test_a_later_process_speaks_where_the_first_goes_on():
    done = subprocess.run(
        [sys.executable, "-c", FAILING, "0.1"],
        cwd=ROOT,
        env=os.environ | {"RANK": "3"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "error: no data\n")
