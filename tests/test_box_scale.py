"""research/box_scale.py through its command line: what it trains, what it writes, its table."""

from __future__ import annotations

import csv

import numpy as np
from conftest import load_script, write_official_set

from dataset.faces import load_faces


def test_scales_are_compared_on_the_same_faces(official_set, tmp_path, run_script):
    faces68 = write_official_set(tmp_path / "faces68", train=8, test=4, num_points=68)
    for split in ("train", "test"):
        source = faces68 / "WFLW_annotations/list_98pt_rect_attr_train_test"
        lines = (source / f"list_98pt_rect_attr_{split}.txt").read_text()
        (faces68 / f"list_68pt_rect_attr_{split}.txt").write_text(lines)

    (faces68 / "WFLW_images").rename(faces68 / "images")
    work = tmp_path / "work"
    arguments = ["--wflw", official_set, "--faces68", faces68, "--work", work, "--epochs", 1]
    arguments += ["--seeds", 2, "--scales", 1.5]
    code, output, _ = run_script("research/box_scale.py", *arguments)
    assert code == 0

    rows = list(csv.DictReader((work / "boxes.csv").open()))
    assert len(rows) == 16  # 2 sets, 2 arms, 2 scales, 2 seeds
    assert {row["box_scale"] for row in rows} == {"1.0", "1.5"}

    table = output.split("wflw: ")[-1].split("faces68: ")[0]  # after the second seed
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [line[:3] for line in lines[1:]] == [
        ["bn", "0.09", "1"],
        ["bn", "0.09", "1.5"],
        ["sepbn-g1k3", "0.03", "1"],
        ["sepbn-g1k3", "0.03", "1.5"],
    ]

    with (work / "boxes_wflw_faces.csv").open() as file:
        faces = list(csv.DictReader(file))

    def mean(scale: str) -> float:
        names = [name for name in faces[0] if name.startswith(f"bn scale {scale} seed")]
        assert len(names) == 2
        return 100 * np.mean([[float(face[name]) for name in names] for face in faces])

    assert len(faces) == 8
    assert abs(float(lines[2][6]) - (mean("1.5") - mean("1"))) < 0.0051

    # all is done: the same tables, and nothing is trained again
    before = {path: path.stat().st_mtime_ns for path in work.glob("checkpoints/*/*")}
    assert run_script("research/box_scale.py", *arguments)[1] == output
    assert {path: path.stat().st_mtime_ns for path in work.glob("checkpoints/*/*")} == before


def test_a_face_is_cut_where_one_point_lies_outside(prepared_set):
    faces = load_faces(prepared_set, "test")
    faces.landmarks[:] = 128.0
    faces.landmarks[2, 5, 0] = 63.4  # crop px -0.6
    faces.landmarks[3, 6, 1] = 191.6  # crop px 127.6
    faces.landmarks[4, 7, 1] = 191.4
    assert load_script("research/box_scale.py").share_cut(faces) == 2 / 8


def test_it_needs_faces(run_script, tmp_path):
    code, _, errors = run_script("research/box_scale.py", "--work", tmp_path)
    assert code == 2 and "give --wflw, --faces68 or both" in errors
