"""predict.py from the command line: the same landmarks as test.py, odd pictures, tables of boxes,
videos.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, smooth_noise, write_checkpoint

from dataset.annotations import official_list, read_official_list
from dataset.boxes import BoxTable
from dataset.crop import CROP_OFFSET, patch_frame
from dataset.detector import Faces
from dataset.faces import load_faces
from evaluation.evaluate import predict_landmarks
from models.checkpoint import SHIPPED, load_model
from prediction.predictor import LandmarkPredictor
from prediction.video import atomic_video


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny" / "final.pt")


@pytest.fixture
def picture() -> np.ndarray:
    return smooth_noise()


@pytest.fixture
def predict(run_script, checkpoint, tmp_path):
    """predict(*arguments) -> (exit code, stdout, stderr, files of landmarks.json); results go to
    tmp_path/out.
    """

    def run(*arguments: object) -> tuple[int, str, str, list[dict]]:
        out = tmp_path / "out"
        code, output, errors = run_script(
            "predict.py", *arguments, "--checkpoint", checkpoint, "--out", out
        )
        written = out / "landmarks.json"
        files = json.loads(written.read_text())["files"] if written.exists() else []

        return code, output, errors, files

    return run


def landmarks_of(entry: dict) -> np.ndarray:
    return np.array([face["landmarks"] for face in entry["faces"]])


def test_predictions_are_those_of_the_test_path(
    official_set, prepared_set, checkpoint, predict, tmp_path
):
    """With the annotated boxes, in crop px."""
    images = official_set / "WFLW_images"
    annotations = read_official_list(official_list(official_set, "test"))
    rows = [",".join(map(str, [face.image, *face.box])) for face in annotations]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,x0,y0,x1,y1", *rows]))
    pictures = sorted({images / face.image for face in annotations})
    options = ["--boxes", tmp_path / "boxes.csv", "--batch-size", 5]
    code, _, errors, files = predict(*pictures, *options)
    assert code == 0 and not errors

    faces = load_faces(prepared_set, "test")
    expected = predict_landmarks(load_model(checkpoint).model, faces, device="cpu")
    answers = {
        (entry["file"], tuple(face["box"])): face["landmarks"]
        for entry in files
        for face in entry["faces"]
    }
    assert len(faces) == len(annotations) == len(answers)

    for face, crop_px in zip(annotations, expected, strict=True):
        points = np.array(answers[str(images / face.image), face.box])
        answer = patch_frame(face.box, "nearest").to_patch(points) - CROP_OFFSET
        assert np.abs(answer - crop_px).max() <= 1e-3


def test_broken_files_are_named_and_the_rest_is_done(predict, picture, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "good.jpg"), picture)
    write_video(folder / "none.avi", [picture])
    whole = {"half.jpg": (folder / "good.jpg").read_bytes()}
    for name in ("cut.png", "cut.tif"):  # of these libpng and OpenCV have something to say
        whole[name] = cv2.imencode(name[3:], picture)[1].tobytes()

    broken = {name: data[: len(data) // 2] for name, data in whole.items()}
    broken |= {"text.png": b"hello", "empty.bmp": b"", "empty.mp4": b""}
    broken["none.avi"] = (folder / "none.avi").read_bytes()[:300]  # the header alone
    for name, data in broken.items():
        (folder / name).write_bytes(data)

    named = [folder / "empty.mp4", folder / "none.avi", tmp_path / "nowhere.jpg"]
    code, output, errors, files = predict(folder, *named, "--whole")
    assert code == 1
    said = [line for line in errors.splitlines() if not line.startswith("libpng ")]
    assert len(said) == 8 and all(line.startswith("error: ") for line in said)

    for name in (*broken, "nowhere.jpg"):
        assert sum(name in line for line in said) == 1
        assert sum(name in entry["file"] and "error" in entry for entry in files) == 1

    (done,) = [entry for entry in files if "error" not in entry]
    assert Path(done["file"]).name == "good.jpg" and (done["width"], done["height"]) == (160, 120)
    assert done["faces"][0]["box"] == [0, 0, 159, 119] and done["faces"][0]["score"] is None
    assert "faces: 1" in output and "faces/s" not in output  # one is no measurement

    overlay = cv2.imread(str(tmp_path / "out" / "good.jpg_overlay.jpg"))
    assert overlay.shape == picture.shape and np.abs(overlay.astype(int) - picture).max() > 50
    written = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert written == ["good.jpg_overlay.jpg", "landmarks.json"]


def test_what_cannot_be_written_is_named_and_the_rest_is_done(predict, picture, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    # a JPEG is at most 65,500 px wide, a file's name at most 255 bytes long
    cv2.imwrite(str(folder / "a_wide.png"), np.zeros((4, 65_501, 3), np.uint8))
    cv2.imwrite(str(folder / ("b" * 245 + ".png")), picture)
    cv2.imwrite(str(folder / "good.png"), picture)
    boxes = ["--box", 1, 0, 3, 3]
    code, _, errors, files = predict(folder, *boxes, "--batch-size", 1, "--format", "pts")
    assert code == 1

    first, second = errors.splitlines()
    assert first.startswith("error:") and "a_wide" in first and "65501 x 4 px is too large" in first
    assert second.startswith("error:") and "bbb" in second and "File name too long" in second

    # the landmarks are in the file nevertheless, once for each picture
    assert [Path(entry["file"]).name[:4] for entry in files] == ["a_wi", "bbbb", "good"]
    assert all(len(entry["faces"]) == 1 for entry in files)
    assert ["error" in entry for entry in files] == [True, True, False]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "good.png_face0.pts",
        "good.png_overlay.jpg",
        "landmarks.json",
    ]


def test_a_box_outside_the_picture_is_named(predict, picture, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    code, _, errors, files = predict(tmp_path / "a.png", "--box", 500, 10, 600, 100)
    assert code == 1 and "a.png" in errors and "outside" in errors and "faces" not in files[0]


def test_boxes_may_cross_the_border_and_repeat(predict, picture, tmp_path, checkpoint):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    boxes = [[-30, -20, 60, 70], [100, 60, 200, 170]]
    arguments = ["--box", -30.2, -19.6, 60.4, 70, "--box", *boxes[1]]
    code, _, _, files = predict(tmp_path / "a.png", *arguments)
    assert code == 0 and [face["box"] for face in files[0]["faces"]] == boxes

    expected = LandmarkPredictor(checkpoint, device="cpu")(picture, boxes)
    assert np.abs(landmarks_of(files[0]) - expected).max() < 1e-3


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    size = frames[0].shape[1], frames[0].shape[0]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12.5, size)
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for frame in frames:
        writer.write(frame)
    writer.release()


def read_frames(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(frame)


def test_a_video_gives_a_row_a_frame(predict, picture, tmp_path, checkpoint):
    write_video(tmp_path / "clip.avi", [np.roll(picture, 7 * i, axis=1) for i in range(5)])
    code, _, _, files = predict(tmp_path / "clip.avi", "--box", 20, 20, 99, 99, "--batch-size", 3)
    assert code == 0 and files[0]["frames"] == 5 and files[0]["frames_per_second"] == 12.5

    rows = rows_of(tmp_path / "out", files[0])
    assert [row["frame"] for row in rows] == list(range(5))

    predictor = LandmarkPredictor(checkpoint, device="cpu")
    for row, frame in zip(rows, read_frames(tmp_path / "clip.avi"), strict=True):
        assert np.abs(landmarks_of(row) - predictor(frame, [[20, 20, 99, 99]])).max() < 1e-3

    overlay = read_frames(tmp_path / "out" / "clip.avi_overlay.mp4")
    assert len(overlay) == 5 and overlay[0].shape == picture.shape


def test_a_video_that_was_cut_is_said_to_be(predict, picture, tmp_path):
    write_video(tmp_path / "clip.avi", [np.roll(picture, 7 * i, axis=1) for i in range(8)])
    whole = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    code, _, errors, files = predict(tmp_path / "cut.avi", tmp_path / "clip.avi", "--whole")
    (said,) = [line for line in errors.splitlines() if line.startswith("note: ")]
    frames = files[0]["frames"]
    assert code == 0 and 0 < frames < 7 and files[1]["frames"] == 8
    assert said.startswith(f"note: {tmp_path / 'cut.avi'}: {frames} frames of 8 could be read")


def test_videos_of_any_rate_and_without_zeros(predict, picture, tmp_path):
    """A picture every two seconds; raw frames after a text header."""
    frame = np.maximum(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), 1).tobytes()
    for name, rate in (("slow.y4m", "1:2"), ("fast.y4m", "50:1")):
        head = f"YUV4MPEG2 W160 H120 F{rate} Ip A1:1 C420jpeg\n"
        (tmp_path / name).write_bytes(head.encode() + 3 * (b"FRAME\n" + frame))

    code, _, _, files = predict(tmp_path / "slow.y4m", tmp_path / "fast.y4m", "--whole")
    assert code == 0 and [entry["frames_per_second"] for entry in files] == [0.5, 50]
    times = [[row["time"] for row in rows_of(tmp_path / "out", entry)] for entry in files]
    assert times == [[0, 2, 4], [0, 0.02, 0.04]]


def test_a_video_that_is_not_finished_leaves_nothing(picture, tmp_path):
    with pytest.raises(KeyError), atomic_video(tmp_path / "v.mp4", 10) as write:
        write(picture)
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,x0,y0,x1\na.png,1,2,3\n", "line 1: no column y1"),
        (
            "file,x0,y0,x1,y1\na.png,1,2,30,30\na.png,1,2,3\n",
            "line 3: x0, y0, x1, y1 must be four numbers",
        ),
        ("file,x0,y0,x1,y1\n,1,2,30,30\n", "line 2: the file name is missing"),
        ("file,x0,y0,x1,y1\na.png,1,2,30,30\na.png,500,2,530,30\n", "line 3"),
    ],
)
def test_a_table_of_boxes_says_where_it_is_wrong(text, complaint, predict, picture, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (tmp_path / "boxes.csv").write_text(text)
    code, _, errors, _ = predict(tmp_path / "a.png", "--boxes", tmp_path / "boxes.csv")
    assert code == 1 and errors.startswith("error:") and errors.count("\n") == 1
    assert "boxes.csv" in errors and complaint in errors


def test_a_table_finds_its_pictures(predict, picture, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), picture)

    cv2.imwrite(str(tmp_path / "ba.png"), picture)
    rows = ["id,file,x0,y0,x1,y1", "7,x/a.png,1,2,30,40", "8,a.png,5,5,50,60", "9,zzz.png,1,1,9,9"]
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    pictures = [tmp_path / "x/a.png", tmp_path / "y/a.png", tmp_path / "ba.png"]
    code, output, errors, files = predict(*pictures, "--boxes", tmp_path / "boxes.csv")

    assert code == 1 and "the first is line 4" in output and "no face" not in output
    assert errors.startswith(f"error: {pictures[2]}: no row in the table") and "\n" in errors[-1]

    boxes = {
        entry["file"]: [face["box"] for face in entry["faces"]]
        for entry in files
        if "error" not in entry
    }
    assert boxes == {
        str(pictures[0]): [[1, 2, 30, 40], [5, 5, 50, 60]],
        str(pictures[1]): [[5, 5, 50, 60]],
    }

    # which of the two a row of another folder means is not guessed
    (tmp_path / "boxes.csv").write_text("file,x0,y0,x1,y1\nz/a.png,1,2,30,40\n")
    code, _, errors, _ = predict(*pictures[:2], "--boxes", tmp_path / "boxes.csv")
    assert code == 1 and errors.count("no row in the table") == 2


def test_outputs_cannot_be_mistaken(predict, picture, tmp_path):
    """Files whose stems, endings or folders are alike; each output is named beside its face."""
    names = ["A.JPG", "a.jpg", "a.png", "a_2.jpg", "sub/a.jpg", "a.jpg_face0.png", "é [x] 100%.jpg"]
    for index, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        suffix = Path(name).suffix.lower()
        content = cv2.imencode(suffix, np.roll(picture, 9 * index, axis=1))[1]
        (tmp_path / "in" / name).write_bytes(content.tobytes())

    options = ["--recursive", "--format", "pts", "--box", 20, 20, 99, 99, "--box", 30, 30, 90, 90]
    code, output, _, files = predict(tmp_path / "in", *options)
    assert code == 0 and "note" not in output and len(files) == len(names)

    for entry in files:
        name = Path(entry["file"]).relative_to(tmp_path / "in").as_posix()
        assert entry["overlay"] == f"{name}_overlay.jpg"
        for index, face in enumerate(entry["faces"]):
            assert face["pts"] == f"{name}_face{index}.pts"
            *head, last = (tmp_path / "out" / face["pts"]).read_text().splitlines()
            assert head[:3] == ["version: 1", "n_points: 98", "{"] and last == "}"
            points = np.array([line.split() for line in head[3:]], float) - 1  # iBUG counts from 1
            assert np.abs(points - face["landmarks"]).max() < 1e-3

    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 3 * len(names) + 1

    # of another call nothing is removed, but it is said
    code, output, _, _ = predict(tmp_path / "in" / "a.png", "--whole")
    assert code == 0 and f"that are not of this call: {3 * len(names) - 1}, such" in output


def test_what_is_left_out_of_a_folder_is_named(predict, picture, tmp_path):
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    for name in ("a.jfif", "without_suffix", ".hidden.jpg", "more/b.jpg"):
        (folder / name).write_bytes(jpeg)

    for name in ("notes.txt", "table.csv"):
        (folder / name).write_text("a line\n" * 50)

    (folder / "archive.zip").write_bytes(b"PK\3\4" + bytes(100))
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    write_video(folder / "clip.xyz.avi", [picture] * 2)
    (folder / "clip.xyz.avi").rename(folder / "clip.xyz")  # told by its content

    code, output, errors, files = predict(folder, "--whole")
    assert code == 1 and errors.count("\n") == 1 and "phone.heic is HEIC" in errors
    said = [line for line in output.splitlines() if line.startswith("note: ")]
    assert said[0].endswith("left out: archive.zip, notes.txt, table.csv")
    assert said[1].endswith("left out without --recursive: more")
    done = [Path(entry["file"]).name for entry in files if "error" not in entry]
    assert done == ["a.jfif", "without_suffix", "clip.xyz"]

    code, output, _, files = predict(folder, "--whole", "--recursive")
    assert "--recursive" not in output and "more/b.jpg" in str([e["file"] for e in files])


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "file,x0,y0,x1,y1\nZoe\u0301.png,20.4,19.6,99.0,98.5001\n"),
        ("utf-8-sig", "File;X0;Y0;X1;Y1\r\nZo\u00e9.png;20,4;19,6;99;98,5001\r\n"),
        ("utf-16", "file\tx0\ty0\tx1\ty1\nZo\u00e9.png\t20\t20\t99\t99\n"),
        ("cp1252", "file;x0;y0;x1;y1\nZo\u00e9.png;20;20;99;99\n"),
        ("utf-8", "file,x0,y0,x1,y1\nin\\Zo\u00e9.png,20,20,99,99\n"),
        ("utf-8", '"file", "x0", "y0", "x1", "y1"\n"Zo\u00e9.png", 20, 20, 99, 99\n,,,,\n'),
        ("utf-8", "file,x0,y0,x1,y1\nC:\\elsewhere\\Zo\u00e9.png,20,20,99,99\n"),
    ],
)
def test_tables_of_other_programs_are_read(encoding, text, predict, picture, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Zo\u00e9.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    (tmp_path / "boxes.csv").write_bytes(text.encode(encoding))
    code, output, errors, files = predict(tmp_path / "in", "--boxes", tmp_path / "boxes.csv")
    assert (code, errors) == (0, "")
    assert ("matched by the file's name: 1" in output) == ("elsewhere" in text)
    assert [face["box"] for face in files[0]["faces"]] == [[20, 20, 99, 99]]


def fields_of(value: object) -> set[str]:
    """All keys of all objects in some JSON."""
    if isinstance(value, dict):
        return set(value).union(*map(fields_of, value.values()))
    return set().union(*map(fields_of, value)) if isinstance(value, list) else set()


def test_every_field_is_documented(predict, picture, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (tmp_path / "bad.png").write_bytes(b"")
    write_video(tmp_path / "clip.avi", [picture])
    inputs = [tmp_path / name for name in ("a.png", "bad.png", "clip.avi")]
    options = ["--format", "pts", "--points", 68]
    code, _, _, files = predict(*inputs, "--whole", *options)
    assert code == 1 and len(files) == 3

    content = json.loads((tmp_path / "out/landmarks.json").read_text())
    found = fields_of(content) | fields_of(rows_of(tmp_path / "out", files[1]))
    page = (ROOT / "docs/predict.md").read_text()
    assert len(found) > 20 and not [name for name in found if f"`{name}`" not in page]


def test_a_table_of_faces_has_a_row_for_each_with_the_names_of_openface(predict, picture, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    write_video(tmp_path / "clip.avi", [picture, np.roll(picture, 5, axis=1)])
    boxes = ["--box", 20, 20, 99, 99, "--angle", 30, "--box", 30, 30, 90, 90, "--angle", 0]
    inputs = [tmp_path / "a.png", tmp_path / "clip.avi"]
    code, _, _, files = predict(*inputs, *boxes, "--format", "csv")
    assert code == 0

    with open(tmp_path / "out" / "landmarks.csv", newline="") as file:
        table = list(csv.DictReader(file))

    faces = [face for entry in files[:1] for face in entry["faces"]]
    faces += [face for row in rows_of(tmp_path / "out", files[1]) for face in row["faces"]]
    assert len(table) == len(faces) == 6
    assert [row["file"] for row in table] == [str(inputs[0])] * 2 + [str(inputs[1])] * 4
    assert [(row["frame"], row["face_id"]) for row in table] == [
        *(("0", "0"), ("0", "1")),
        *(("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")),
    ]
    assert [float(row["timestamp"]) for row in table] == [0, 0, 0, 0, 0.08, 0.08]

    for row, face in zip(table, faces, strict=True):
        points = [[float(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(98)]
        assert points == face["landmarks"] and row["success"] == "1" and row["confidence"] == ""
        assert [int(row[edge]) for edge in ("x0", "y0", "x1", "y1")] == face["box"]
        assert float(row["angle"]) == face["angle"]

    # it is a table of boxes, too, each for its own frame
    code, _, _, again = predict(*inputs, "--boxes", tmp_path / "out" / "landmarks.csv")
    assert code == 0 and again[0]["faces"] == files[0]["faces"]
    found = [face for row in rows_of(tmp_path / "out", again[1]) for face in row["faces"]]
    assert found == faces[2:]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_a_moving_picture_is_a_video_with_the_time_of_every_frame(kind, predict, picture, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow writes moving pictures")
    frames = [image.fromarray(np.roll(picture, 7 * i, axis=1)[..., ::-1]) for i in range(4)]
    moving, still = tmp_path / f"moving.{kind.lower()}", tmp_path / f"still.{kind.lower()}"
    durations = [40, 40, 200, 200]
    frames[0].save(moving, save_all=True, append_images=frames[1:], duration=durations)
    frames[0].save(still)

    code, _, _, files = predict(moving, still, "--box", 20, 20, 99, 99)
    assert code == 0 and [Path(entry["file"]).name for entry in files] == [still.name, moving.name]
    rows = rows_of(tmp_path / "out", files[1])
    assert [row["time"] for row in rows] == [0, 0.04, 0.08, 0.28]
    assert all([face["id"] for face in row["faces"]] == [0] for row in rows)


def test_boxes_are_found_however_the_path_is_written(tmp_path, monkeypatch):
    for folder in ("real", "here"):
        (tmp_path / folder).mkdir()
    (tmp_path / "real" / "a.jpg").touch()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "here")

    spellings = ["../real/a.jpg", f"{tmp_path}/link/a.jpg", "a.jpg", "b.jpg"]
    rows = [f"{name},{index},0,9,9" for index, name in enumerate(spellings)]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,x0,y0,x1,y1", *rows]))
    table = BoxTable(tmp_path / "boxes.csv")

    for picture, found in (("../real/a.jpg", [0, 2]), ("../link/a.jpg", [1, 2])):
        assert [row.box[0] for row in table.boxes_of(Path(picture))] == found


def test_names_that_are_not_utf8(predict, picture, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    raw = os.fsdecode(b"\xff\xe9.png")
    (folder / raw).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    write_video(tmp_path / "v.avi", [picture])
    video = tmp_path / os.fsdecode(b"\xff\xe9.avi")
    (tmp_path / "v.avi").rename(video)
    code, _, errors, files = predict(folder, video, "--whole")

    assert code == 1 and errors.count("\n") == 1 and "of a kind that OpenCV does not read" in errors
    assert files[0]["file"] == str(folder / raw) and len(files[0]["faces"]) == 1
    overlay = os.fsdecode(b"in/\xff\xe9.png_overlay.jpg")
    assert files[0]["overlay"] == overlay and (tmp_path / "out" / overlay).stat().st_size > 1000

    code, _, errors, _ = predict(folder, "--detector", tmp_path / os.fsdecode(b"\xff.onnx"))
    assert code == 1 and "no face detector" in errors


def test_paths_that_cannot_be_looked_at_and_devices(predict, picture, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    inputs = [tmp_path / "loop", tmp_path / ("n" * 300), "/dev/zero", tmp_path / "a.png"]
    code, _, errors, files = predict(*inputs, "--whole")
    assert code == 1 and errors.count("error:") == errors.count("\n") == 3
    assert sum("faces" in entry for entry in files) == 1


def test_the_detector_finds_faces_with_scores_and_none_where_there_is_none(
    shared_data, predict, picture, tmp_path
):
    folder = tmp_path / "in"
    shutil.copytree(shared_data / "wflw/WFLW_images/31--Waiter_Waitress", folder)
    cv2.imwrite(str(folder / "zz_noise.png"), picture)
    cv2.imwrite(str(folder / "zz_pixel.png"), picture[:1, :1])
    detector = shared_data / "models/face_detection_yunet_2023mar.onnx"
    code, output, _, files = predict(folder, "--detector", detector)
    assert code == 0 and output.count("zz_noise.png: no face") == 1
    assert [entry["faces"] for entry in files[-2:]] == [[], []]

    faces = [face for entry in files for face in entry["faces"]]
    assert faces and all(0.6 <= face["score"] <= 1 for face in faces)


def test_the_released_network_is_taken_whatever_was_trained(
    run_script, picture, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", picture)
    write_checkpoint(tmp_path / "checkpoints" / "mine" / "final.pt")
    code, output, errors = run_script("predict.py", "a.png", "--whole")
    assert code == 0 and not errors and f"checkpoint {SHIPPED}: " in output
    assert json.loads((tmp_path / "predictions/landmarks.json").read_text())["checkpoint"] == str(
        SHIPPED
    )


def rows_of(folder: Path, entry: dict) -> list[dict]:
    return [json.loads(line) for line in (folder / entry["rows"]).read_text().splitlines()]


def test_smooth_lowers_the_trembling_of_a_video(predict, picture, tmp_path):
    random = np.random.default_rng(0)
    noise = random.normal(0, 12, (25, *picture.shape))
    write_video(tmp_path / "clip.avi", list(np.clip(picture + noise, 0, 255).astype(np.uint8)))
    tremble = []

    for options in ([], ["--smooth"]):
        box = ["--box", 20, 20, 99, 99]
        code, _, _, files = predict(tmp_path / "clip.avi", *box, *options)
        assert code == 0
        points = np.stack([landmarks_of(row)[0] for row in rows_of(tmp_path / "out", files[0])])
        tremble.append(points[10:].std(axis=0).mean())

    assert 0 < tremble[1] < 0.6 * tremble[0]


class Finder:
    """Stands for a face detector: a box that is turned, and how often it was asked."""

    asked = 0
    boxes = ((20, 20, 99, 99),)

    def __init__(self, path: Path, *, min_score: float, min_face: float | None) -> None:
        Finder.asked = 0
        self.min_face, self.options = min_face, (min_score, min_face)

    def smallest(self, image: np.ndarray) -> float:
        return self.min_face or 125.0

    def __call__(self, image: np.ndarray) -> Faces:
        Finder.asked += 1
        count = len(self.boxes)
        scores, angles = np.full(count, 0.9, np.float32), np.full(count, 30.0)
        return Faces(np.array(self.boxes), scores, angles)


def test_faces_are_searched_for_in_every_nth_frame(predict, picture, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.detector.FaceDetector", Finder)
    write_video(tmp_path / "clip.avi", [picture] * 7)
    options = ["--detector", "x.onnx", "--detect-every", 3]
    code, _, _, files = predict(tmp_path / "clip.avi", *options)
    assert code == 0 and Finder.asked == 3  # frames 0, 3, 6

    rows = rows_of(tmp_path / "out", files[0])
    scores = [row["faces"][0]["score"] for row in rows]
    assert [score is None for score in scores] == [False, True, True] * 2 + [False]

    # nothing moves: carried boxes stay where they were found, up to what the codec changes
    for row in rows:
        assert np.abs(np.array(row["faces"][0]["box"]) - [20, 20, 99, 99]).max() <= 1
        assert row["faces"][0]["angle"] == 30


def test_the_largest_face_alone_and_what_was_not_searched_for(
    predict, picture, tmp_path, monkeypatch
):
    monkeypatch.setattr("dataset.detector.FaceDetector", Finder)
    monkeypatch.setattr(Finder, "boxes", ((20, 20, 39, 39), (50, 10, 99, 69), (0, 0, 9, 9)))
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    found = ["--detector", "x.onnx"]
    code, output, _, files = predict(tmp_path / "a.png", *found)
    assert code == 0 and len(files[0]["faces"]) == 3
    assert "a.png: faces of less than 125 px were not searched for; --min-face" in output

    code, output, _, files = predict(tmp_path / "a.png", *found, "--largest", "--min-face", 50)
    assert [face["box"] for face in files[0]["faces"]] == [[50, 10, 99, 69]]
    assert code == 0 and "searched" not in output


def test_views_tell_their_spread_and_which_faces_are_doubtful(
    predict, picture, tmp_path, checkpoint
):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    box = [30, 20, 99, 90]
    options = ["--box", *box, "--views", 4, "--batch-size", 6]
    code, output, _, files = predict(tmp_path / "a.png", *options)
    (face,) = files[0]["faces"]
    points, spread = LandmarkPredictor(checkpoint, device="cpu")(picture, [box], views=4)
    assert code == 0 and np.abs(np.array(face["landmarks"]) - points[0]).max() < 1e-3
    assert np.abs(np.array(face["spread"]) - spread[0]).max() < 1e-3

    # a network that nobody trained answers one place, wherever the face is
    assert face["doubtful"] is True and "1 faces, the first in" in output and "doubtful" in output
    _, output, _, files = predict(tmp_path / "a.png", "--box", *box)
    assert not {"spread", "doubtful"} & files[0]["faces"][0].keys() and "doubtful" not in output


def test_boxes_are_refined_where_asked_for(predict, picture, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("dataset.detector.FaceDetector", Finder)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    found, given = ["--detector", "x.onnx"], ["--box", 20, 20, 99, 99, "--angle", 30]
    answers = {}

    for refine in (False, True):
        predictor = LandmarkPredictor(checkpoint, device="cpu", refine=refine)
        answers[refine] = predictor(picture, [[20, 20, 99, 99]], angles=[30])
        for options in (found, given):
            _, _, _, files = predict(tmp_path / "a.png", *options, *["--refine"] * refine)
            assert np.abs(landmarks_of(files[0]) - answers[refine]).max() < 1e-3
            assert files[0]["faces"][0]["box"] == [20, 20, 99, 99]

    assert np.abs(answers[True] - answers[False]).max() > 1


def test_a_box_may_be_turned(predict, picture, tmp_path, checkpoint):
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    boxes = [[30, 20, 99, 90], [40, 20, 109, 90]]
    options = ["--box", *boxes[0], "--angle", 0, "--box", *boxes[1], "--angle", -75.5]
    code, _, _, files = predict(tmp_path / "a.png", *options)
    assert code == 0 and [face["angle"] for face in files[0]["faces"]] == [0, -75.5]

    expected = LandmarkPredictor(checkpoint, device="cpu")(picture, boxes, angles=[0, -75.5])
    assert np.abs(landmarks_of(files[0]) - expected).max() < 1e-3

    overlay = cv2.imread(str(tmp_path / "out" / files[0]["overlay"])).astype(int)
    (x, y), turn = (74.5, 55.0), np.deg2rad(-75.5)
    corner = (
        x - 34.5 * np.cos(turn) + 35 * np.sin(turn),
        y - 34.5 * np.sin(turn) - 35 * np.cos(turn),
    )
    assert overlay[round(corner[1]), round(corner[0])].min() > 180
