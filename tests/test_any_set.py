"""Any set of faces through the command lines: `.pts` folders, boxes, their scale, own schemes, and
98 points on 68.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import refused, write_checkpoint, write_official_set

from dataset.annotations import official_list, read_crop_list, read_official_list
from dataset.boxes import landmark_box
from dataset.crop import CROP_OFFSET, patch_frame
from dataset.faces import load_faces
from dataset.landmarks import COMMON_60, IBUG_68, WFLW_98, WFLW_OF_IBUG, define, to_ibug_68
from dataset.pts import parse_pts
from evaluation import evaluate
from evaluation.cost import measure_speed
from models.architecture import Architecture
from models.checkpoint import load_model, read
from prediction.outputs import write_pts
from training.config import TrainConfig
from training.initial import settings_of_file, start_from
from utils.files import UserError
from utils.metrics import nme

PREPARE = "dataset/createWFLW256.py"
# a point every fourth of the contour, the brows' upper edges, nose, eye corners, mouth, pupils
FORTY = (
    *range(0, 33, 4),
    *(*range(33, 38), *range(42, 47)),
    *(*range(51, 56), 57, 59),
    *(60, 64, 68, 72),
    *(76, 79, 82, 85, 88, 90, 92, 94),
    *(96, 97),
)


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch):
    """Speed is not the matter here."""
    quick = functools.partial(measure_speed, batch_size=8, seconds=0.0)
    monkeypatch.setattr(evaluate, "measure_speed", quick)


def write_pts_folders(folder: Path, images: Path, lists: dict[str, Path], step: int = 1) -> Path:
    """A folder of pictures and .pts files for each split, from every ``step``-th face of a list,
    and ``boxes.csv`` with their boxes.
    """
    rows = ["file,x0,y0,x1,y1"]

    for split, path in lists.items():
        (folder / split).mkdir(parents=True)
        for index, face in enumerate(read_official_list(path)[::step]):
            place = folder / split / f"face{index:04d}{Path(face.image).suffix}"
            shutil.copy(images / face.image, place)
            points = "".join(f"{x!r} {y!r}\n" for x, y in (face.landmarks + 1).tolist())
            header = f"version: 1\nn_points:  {len(face.landmarks)}\n"
            place.with_suffix(".pts").write_text(f"{header}{{\n{points}}}\n")
            rows.append(",".join(map(str, [f"{split}/{place.name}", *face.box])))

    (folder / "boxes.csv").write_text("\n".join(rows))

    return folder


@pytest.fixture
def pts_set(official_set, tmp_path) -> Path:
    """The synthetic faces as .pts folders, with 98 points."""
    lists = {split: official_list(official_set, split) for split in ("train", "test")}

    return write_pts_folders(tmp_path / "pts", official_set / "WFLW_images", lists)


def pts_arguments(folder: Path, out: Path) -> list:
    return ["--pts-train", folder / "train", "--pts-test", folder / "test", "--out", out]


# --- .pts files ---------------------------------------------------------------------------------

POINTS = np.array([[10.5, 20.0], [0.0, -3.25], [1e3, 7.125]])


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\nn_points: 3\n{\n11.5 21\n1 -2.25\n1001 8.125\n}\n",
        "version: 1\r\nn_points:  3\r\n{\r\n11.5 21\r\n1 -2.25\r\n1001 8.125\r\n}",
        "11.5 21\n1 -2.25\n1001 8.125\n",
        "\ufeff# left eye, right eye, chin\n\n 11.5\t21 // left\n1 -2.25 # right\n1001 8.125\n",
        "N_Points:3\n{\n11.5 21\n1.0e0 -2.25\n1.001e3 8.125\n}\n\n",
    ],
    ids=["iBUG's form", "CRLF", "bare lines", "comments", "another header"],
)
def test_pts_files(text):
    np.testing.assert_array_equal(parse_pts(text.encode(), Path("a.pts")), POINTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_points: 3\n{\n1 2\n3 4\n}\n", "a.pts: n_points is 3, but 2 points follow"),
        ("n_points: 2\n{\n1 2\n3 4\n", "a.pts: the closing brace is missing"),
        ("1 2\n3 nan\n", "a.pts, line 2: '3 nan' is no pair of finite"),
        ("1 2\n3 4 5\n", "line 2: '3 4 5' is no pair of finite numbers"),
        ("1 2\n3 four\n", "line 2: '3 four' is no pair of finite numbers"),
        ("", "a.pts: 0 points"),
        (b"\x89PNG\xff\xfe", "a.pts: not a text file"),
    ],
)
def test_a_bad_pts_file_is_named(text, message):
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(UserError) as caught:
        parse_pts(data, Path("a.pts"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- folders of them ----------------------------------------------------------------------------


def test_a_pts_folder_gives_what_its_list_gives(pts_set, prepared_set, tmp_path, run_script):
    arguments = [*pts_arguments(pts_set, tmp_path / "out"), "--boxes", pts_set / "boxes.csv"]
    code, output, errors = run_script(PREPARE, *arguments)
    assert (code, errors) == (0, "") and "12 train + 8 test faces (20 patches written)" in output

    for split, count in (("train", 12), ("test", 8)):
        found, expected = (
            read_crop_list(folder / f"WFLW256_{split}.txt")[0]
            for folder in (tmp_path / "out", prepared_set)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        for index in range(count):
            name = f"{split}/WFLW{index:04d}.png"
            assert (tmp_path / "out" / name).read_bytes() == (prepared_set / name).read_bytes()

    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert (meta["scheme"], meta["num_points"], meta["box_scale"]) == ("WFLW-98", 98, 1.0)
    assert meta["boxes"]["from"] == "table" and meta["boxes"]["file"] == "boxes.csv"
    assert meta["source"]["train"]["pts"] == 12 and str(tmp_path) not in json.dumps(meta)
    assert "nothing to do" in run_script(PREPARE, *arguments)[1]

    (pts_set / "train" / "face0003.pts").write_text("1 2\n" * 98)
    assert "holds a set of another source" in refused(run_script, PREPARE, *arguments)


def test_boxes_about_the_landmarks(pts_set, tmp_path, run_script):
    out = tmp_path / "out"
    assert run_script(PREPARE, *pts_arguments(pts_set, out))[0] == 0

    meta = json.loads((out / "meta.json").read_text())
    assert meta["boxes"] == {"from": "landmarks", "side": 1.23, "rise": 0.13}

    crops = load_faces(out, "train").crop_landmarks().double().numpy()

    for points in crops:  # in a crop of 128 px the longer extent is 128 / 1.23
        low, high = points.min(axis=0), points.max(axis=0)
        assert (high - low).max() == pytest.approx(128 / 1.23, abs=3)
        centre = (64, 64 + 0.13 * 128 / 1.23)
        np.testing.assert_allclose((low + high) / 2, centre, atol=3)


def test_boxes_of_wflw_are_laid_as_measured(shared_data):
    """The constants are the medians over the 332 faces, to two digits, and Helen's are laid so."""
    helen = read_official_list(shared_data / "w300_68pt/list_68pt_rect_attr_train.txt")
    assert max(np.abs(np.subtract(landmark_box(f.landmarks), f.box)).max() for f in helen) <= 4

    sides, rises, asides = [], [], []

    for face in read_official_list(official_list(shared_data / "wflw", "train")):
        low, high = face.landmarks.min(axis=0), face.landmarks.max(axis=0)
        left, top, right, bottom = face.box
        extent = (high - low).max()
        sides.append((right - left + 1) / extent)
        offset = (np.array([left + right, top + bottom]) - low - high) / 2 / extent
        asides.append(offset[0])
        rises.append(-offset[1])

    assert len(sides) == 332
    assert np.median(sides) == pytest.approx(1.23, abs=0.005)
    assert np.median(rises) == pytest.approx(0.13, abs=0.005)
    assert abs(np.median(asides)) < 0.01


def everywhere(folder: Path, text: str) -> None:
    for path in folder.rglob("*.pts"):
        path.write_text(text)


def table(folder: Path, rows: str) -> None:
    (folder / "table.csv").write_text("file,x0,y0,x1,y1\n" + rows)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


# What is done to a set's folder or to one of its faces, and what the one line must say.
SPOILED = {
    "face0002.pts: no picture": lambda _, pts: pts.with_suffix(".png").unlink(),
    "face0002.png: .*no face0002.pts beside it": lambda _, pts: pts.unlink(),
    "face0002.pts: 2 points, but .*face0000.pts has 98": lambda _, pts: pts.write_text(
        "1 2\n3 4\n"
    ),
    "face0002.png: .*face0002.JPG lies beside it": lambda _, pts: shutil.copy(
        pts.with_suffix(".png"), pts.with_suffix(".JPG")
    ),
    "face0002.pts: all landmarks lie in one place": lambda _, pts: pts.write_text("5 5\n" * 98),
    "test: No such file": lambda folder, _: shutil.rmtree(folder / "test"),
    "test holds no .pts file": lambda folder, _: empty(folder / "test"),
    "face0002.pts: image .* damaged": lambda _, pts: pts.with_suffix(".png").write_bytes(b"none"),
    "no landmark scheme has 3 points.*--scheme": lambda folder, _: everywhere(
        folder, "1 2\n3 4\n5 6\n"
    ),
    "has 98 points per face, .* has 68": lambda folder, _: everywhere(
        folder / "test", "".join(f"{i} {i * i}\n" for i in range(68))
    ),
    "0 rows for face0000.png in .*table.csv": lambda folder, _: table(folder, ""),
    "2 rows for face0000.png in .*table.csv": lambda folder, _: table(
        folder, "face0000.png,1,1,9,9\ntrain/face0000.png,1,1,9,9\n"
    ),
    "table.csv, line 2": lambda folder, _: table(folder, "face0000.png,5,5,4,9\n"),
}


@pytest.mark.parametrize("words", SPOILED)
def test_what_is_wrong_with_a_pts_folder_is_one_line(pts_set, tmp_path, run_script, words):
    SPOILED[words](pts_set, pts_set / "test" / "face0002.pts")
    arguments = pts_arguments(pts_set, tmp_path / "out")
    if (pts_set / "table.csv").exists():
        arguments += ["--boxes", pts_set / "table.csv"]

    line = refused(run_script, PREPARE, *arguments)
    assert re.search(words, line), line
    assert not (tmp_path / "out" / "meta.json").exists()


def test_boxes_from_the_detector(shared_data, tmp_path, run_script):
    """Faces that it misses are named and counted; boxes lie about the faces."""
    source = shared_data / "w300_68pt"
    lists = {split: source / f"list_68pt_rect_attr_{split}.txt" for split in ("train", "test")}
    folder = write_pts_folders(tmp_path, source / "images", lists, step=60)
    hidden = folder / "test" / "face0001.jpg"
    cv2.imwrite(str(hidden), np.full((300, 300, 3), 120, np.uint8))
    yunet = shared_data / "models" / "face_detection_yunet_2023mar.onnx"
    arguments = [*pts_arguments(folder, tmp_path / "out"), "--detector", yunet]
    code, output, _ = run_script(PREPARE, *arguments)
    assert code == 0

    boxes = json.loads((tmp_path / "out" / "meta.json").read_text())["boxes"]
    assert boxes["from"] == "detector" and boxes["file"] == yunet.name
    assert "test/face0001.jpg" in boxes["missed"]["test"]

    missed = boxes["missed"]["test"]
    assert f"{len(missed)} test faces were not found and are left out: " in output
    assert all(name in output for name in missed)

    faces = load_faces(tmp_path / "out", "test")
    assert len(faces) == 6 - len(missed)

    assert (faces.crop_landmarks().mean(dim=1) - 64).abs().max() < 30

    for picture in (folder / "test").glob("*.jpg"):
        cv2.imwrite(str(picture), np.full((300, 300, 3), 120, np.uint8))

    arguments = [*pts_arguments(folder, tmp_path / "none"), "--detector", yunet]
    line = refused(run_script, PREPARE, *arguments)
    assert "no face of" in line and "none is left to use" in line
    assert not (tmp_path / "none").exists()


# --- box scale ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scaled_set(official_set, tmp_path_factory) -> Path:
    """The synthetic faces, prepared with the box half as large again."""
    from conftest import load_script

    folder = tmp_path_factory.mktemp("scaled") / "out"
    arguments = ["--wflw", official_set, "--out", folder, "--box-scale", "1.5"]
    assert load_script(PREPARE).main(list(map(str, arguments))) == 0

    return folder


def test_box_scale_of_a_prepared_set(official_set, scaled_set, run_script):
    meta = json.loads((scaled_set / "meta.json").read_text())
    assert meta["box_scale"] == 1.5

    for split in ("train", "test"):
        found, _ = read_crop_list(scaled_set / f"WFLW256_{split}.txt")
        annotations = read_official_list(official_list(official_set, split))

        for face, points in zip(annotations, found, strict=True):
            frame = patch_frame(face.box, "nearest", 1.5)
            expected = (face.landmarks - (frame.left, frame.top)) * 256 / frame.side
            np.testing.assert_allclose(points, expected, atol=1e-9)

    again = ["--wflw", official_set, "--out", scaled_set]
    assert "holds a set of another box scale" in refused(run_script, PREPARE, *again)


def test_box_scale_follows_into_everything(
    scaled_set, prepared_set, tmp_path, run_script, monkeypatch
):
    """Run record, checkpoint, test.py; of predict.py and ONNX, see the forty points below."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", scaled_set, "--width", "2", "--epochs", "1", "--run", "large"]
    assert run_script("trainBaseline.py", *arguments)[0] == 0

    final = tmp_path / "checkpoints" / "large" / "final.pt"
    record = json.loads(final.with_name("config.json").read_text())
    assert record["box_scale"] == read(final)["config"]["box_scale"] == 1.5

    code, output, errors = run_script("test.py", final, "--data", scaled_set)
    assert (code, errors) == (0, "") and "face box grown to 1.5 times its side" in output

    code, output, errors = run_script("test.py", final, "--data", prepared_set)
    assert code == 0 and errors.startswith("warning: large was trained on face boxes of 1.5 times")


def test_folders_and_checkpoints_of_earlier_versions(
    official_set, prepared_set, tmp_path, run_script
):
    """They say nothing of scale, boxes and own schemes."""
    folder = tmp_path / "old"
    shutil.copytree(prepared_set, folder)
    meta = json.loads((folder / "meta.json").read_text())
    for name in ("box_scale", "boxes", "scheme_definition"):
        del meta[name]

    (folder / "meta.json").write_text(json.dumps(meta))
    result = run_script(PREPARE, "--wflw", official_set, "--out", folder)
    assert result[0] == 0 and "already complete" in result[1]

    faces = load_faces(folder, "test")
    assert faces.scheme == WFLW_98 and faces.meta.get("box_scale", 1.0) == 1.0

    loaded = load_model(write_checkpoint(tmp_path / "run" / "final.pt"))
    assert loaded.config["box_scale"] == 1.0


@pytest.mark.parametrize("value", ["1.2", float("nan"), -1, True, 99])
def test_a_box_scale_that_is_none_is_refused(prepared_set, tmp_path, value):
    folder = tmp_path / "copy"
    shutil.copytree(prepared_set, folder)
    meta = json.loads((folder / "meta.json").read_text()) | {"box_scale": value}
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="meta.json: box_scale is "):
        load_faces(folder, "test")


# --- schemes of one's own -----------------------------------------------------------------------


def forty_points() -> dict:
    """A made-up scheme: 40 of WFLW's points, numbered anew."""
    place = {point: i for i, point in enumerate(FORTY)}
    contours = [
        {"name": c.name, "points": [place[p] for p in c.points if p in place], "closed": c.closed}
        for c in WFLW_98.contours
    ]

    return {
        "name": "forty points",
        "mirror": [place[WFLW_98.mirror[point]] for point in FORTY],
        "outer_eyes": [place[60], place[72]],
        "contours": contours,
    }


@pytest.fixture(scope="module")
def forty_set(official_set, tmp_path_factory) -> tuple[Path, list]:
    """Lists of the synthetic faces with 40 points, the scheme's file, and the options to prepare
    them.
    """
    folder = tmp_path_factory.mktemp("forty")
    (folder / "scheme.json").write_text(json.dumps(forty_points()))

    for split in ("train", "test"):
        lines = [
            line.split() for line in official_list(official_set, split).read_text().splitlines()
        ]
        chosen = [
            [c for p in FORTY for c in line[2 * p : 2 * p + 2]] + line[196:] for line in lines
        ]
        (folder / f"{split}.txt").write_text("\n".join(map(" ".join, chosen)))

    options = ["--images", official_set / "WFLW_images", "--train-list", folder / "train.txt"]

    return folder, [*options, "--test-list", folder / "test.txt"]


def test_forty_points_from_the_picture_to_the_export(
    forty_set, official_set, tmp_path, run_script, monkeypatch
):
    folder, options = forty_set
    data = tmp_path / "data"
    scheme = ["--scheme", folder / "scheme.json", "--box-scale", 1.25]
    assert run_script(PREPARE, *options, "--out", data, *scheme)[0] == 0 and len(FORTY) == 40

    faces = load_faces(data, "test")
    assert define(faces.scheme) == forty_points() and faces.landmarks.shape == (8, 40, 2)

    monkeypatch.chdir(tmp_path)
    training = ["--data", data, "--width", "2", "--epochs", "1", "--run", "own"]
    assert run_script("trainBaselineSepDyBN.py", *training)[0] == 0

    final = tmp_path / "checkpoints" / "own" / "final.pt"
    config = read(final)["config"]
    assert (config["scheme"], config["num_landmarks"]) == ("forty points", 40)

    code, output, errors = run_script("test.py", final, "--data", data)
    assert (code, errors) == (0, "") and "metric, 40 points" in output
    left, right = forty_points()["outer_eyes"]
    assert f"distance of points {left} and {right}, " in output  # nobody said that they are eyes

    prediction = evaluate.predict_landmarks(load_model(final).model, faces, device="cpu")
    expected = nme(prediction, faces.crop_landmarks().numpy(), tuple(forty_points()["outer_eyes"]))
    row = next(line for line in output.splitlines() if line.startswith("| own "))
    assert float(row.split("|")[3]) == pytest.approx(100 * expected.mean(), abs=0.006)

    face = read_official_list(folder / "test.txt", num_points=40)[0]
    picture = official_set / "WFLW_images" / face.image
    box = ["--box", *face.box, "--checkpoint", final]
    assert run_script("predict.py", picture, *box, "--format", "pts")[0] == 0

    answer = json.loads(Path("predictions/landmarks.json").read_text())
    assert answer["scheme"] == "forty points"

    image_px = np.array(answer["files"][0]["faces"][0]["landmarks"])
    crop_px = patch_frame(face.box, "nearest", 1.25).to_patch(image_px) - CROP_OFFSET
    assert np.abs(crop_px - prediction[0]).max() <= 1e-3
    line = refused(run_script, "predict.py", picture, *box, "--points", 68)
    assert "68 points cannot be" in line

    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert run_script("export.py", final, "--onnx", "own.onnx")[0] == 0

    said = {entry.key: entry.value for entry in onnx.load("own.onnx").metadata_props}
    assert json.loads(said["scheme_definition"]) == forty_points()
    assert said["box_scale"] == "1.25" and "round(side * box_scale / 2)" in said["crop_rule"]


def test_own_points_as_pts_files(forty_set, tmp_path, run_script):
    folder, _ = forty_set

    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        faces = read_official_list(folder / f"{split}.txt", num_points=40)

        for index, face in enumerate(faces):
            cv2.imwrite(str(tmp_path / split / f"{index}.png"), np.zeros((200, 200, 3), np.uint8))
            write_pts(tmp_path / split / f"{index}.pts", face.landmarks)

    arguments = pts_arguments(tmp_path, tmp_path / "out")
    assert "no landmark scheme has 40 points" in refused(run_script, PREPARE, *arguments)
    assert run_script(PREPARE, *arguments, "--scheme", folder / "scheme.json")[0] == 0
    assert load_faces(tmp_path / "out", "train").scheme.name == "forty points"

    (tmp_path / "test" / "3.pts").write_text("1 2\n3 4\n")
    line = refused(run_script, PREPARE, *arguments, "--scheme", folder / "scheme.json")
    assert "3.pts: 2 points, but the scheme has 40" in line


def test_a_network_of_own_points_starts_from_the_same_points(forty_set, tmp_path, run_script):
    """39 of the forty come from the file; the network answers them as the file's does."""
    folder, options = forty_set
    same = [*FORTY[:-1], None]
    (tmp_path / "scheme.json").write_text(json.dumps(changed(same_as={"WFLW-98": same})))
    scheme = ["--scheme", tmp_path / "scheme.json"]
    assert run_script(PREPARE, *options, "--out", tmp_path / "data", *scheme)[0] == 0

    faces = load_faces(tmp_path / "data", "train")
    loaded = load_model(write_checkpoint(tmp_path / "points98" / "final.pt"))
    config = TrainConfig().settled(settings_of_file(loaded))
    model = Architecture.from_config(asdict(config) | {"num_landmarks": 40}).build()
    words = start_from(model, loaded, faces, config)
    assert words == "last layer: 39 points copied, 1 at the mean shape"

    ours, theirs = (
        evaluate.predict_landmarks(network, faces, device="cpu")
        for network in (model, loaded.model)
    )
    np.testing.assert_allclose(ours[:, :-1], theirs[:, FORTY[:-1]], rtol=0, atol=1e-3)
    mean = np.broadcast_to(faces.mean_shape()[-1], (len(faces), 2))
    np.testing.assert_allclose(ours[:, -1], mean, rtol=0, atol=1e-3)


def test_points_in_the_middle_of_the_face_get_a_box_about_all_of_it():
    points = np.array([[50.0, 60.0], [150.0, 60.0], [100.0, 110.0], [70.0, 150.0], [130.0, 150.0]])
    left, top, right, bottom = landmark_box(points, eyes=(0, 1))
    # centred as without: 0.13 of 100 px above the middle of the points
    assert abs((left + right) / 2 - 100) <= 0.5 and abs((top + bottom) / 2 - 92) <= 0.5
    assert right - left + 1 == bottom - top + 1 == 218

    # where they reach further than their eyes suggest, nothing changes
    assert landmark_box(points * (1, 3), eyes=(0, 1)) == landmark_box(points * (1, 3))


def test_the_wrong_points_are_one_line(forty_set, prepared_set, tmp_path, run_script):
    folder, options = forty_set
    made = [*options, "--out", tmp_path / "data"]
    assert "line 1: 91 fields, expected 207" in refused(run_script, PREPARE, *made)
    assert run_script(PREPARE, *made, "--scheme", folder / "scheme.json")[0] == 0

    final = write_checkpoint(tmp_path / "run" / "final.pt")
    line = refused(run_script, "test.py", final, "--data", tmp_path / "data")
    assert "98 landmarks (WFLW-98)" in line and "40 (forty points)" in line

    damaged = write_checkpoint(tmp_path / "bad" / "final.pt", scheme_definition={"name": 3})
    line = refused(run_script, "test.py", damaged, "--data", prepared_set)
    assert str(damaged) in line and "scheme_definition is damaged" in line


def changed(**fields) -> dict:
    return forty_points() | fields


def contour(**fields) -> dict:
    contours = forty_points()["contours"]
    return changed(contours=[contours[0] | fields, *contours[1:]])


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (changed(mirror=[1, 2, 0, *range(3, 40)]), "mirror is no involution: 0 goes to 1"),
        (changed(mirror=[*range(39), 40]), "mirror names point 40; points are 0 to 39"),
        (changed(outer_eyes=[3]), "outer_eyes must be a list of the two points"),
        (changed(name="two\nlines"), "it must be a text of one line"),
        (changed(name="WFLW-98"), "name 'WFLW-98' is that of a built-in scheme"),
        (changed(colour="red"), "unexpected keyword argument 'colour'"),
        ({"name": "x", "mirror": [0], "contours": []}, "argument: 'outer_eyes'"),
        (changed(contours=[]), "no contour holds point 0"),
        (contour(points=[0, 1, 2, 1]), "contours[0].points names point 1 twice"),
        (contour(closed="yes"), "contours[0].closed must be true or false"),
        (changed(same_as={"WFLW-98": [1]}), "same_as.WFLW-98 must be a list of 40 points"),
        (changed(same_as={"WFLW-98": [98] * 40}), "same_as.WFLW-98 names point 98"),
        ([1, 2], "holds a list, not an object"),
        ("{", "damaged, not JSON"),
        (None, "does not exist"),
    ],
)
def test_a_scheme_that_is_none_is_one_line(forty_set, tmp_path, run_script, scheme, message):
    path = tmp_path / "scheme.json"
    if scheme is not None:
        path.write_text(scheme if isinstance(scheme, str) else json.dumps(scheme))

    options = [*forty_set[1], "--out", tmp_path / "out", "--scheme", path]
    line = refused(run_script, PREPARE, *options)
    assert "scheme.json" in line and message in line
    assert not (tmp_path / "out").exists()


def test_a_run_does_not_go_on_with_another_mirror(forty_set, tmp_path, run_script, monkeypatch):
    folder, options = forty_set
    scheme = json.loads((folder / "scheme.json").read_text())
    (tmp_path / "same.json").write_text(json.dumps(scheme | {"mirror": [*range(40)]}))
    monkeypatch.chdir(tmp_path)

    for name, file in (("one", folder / "scheme.json"), ("two", tmp_path / "same.json")):
        assert run_script(PREPARE, *options, "--out", name, "--scheme", file)[0] == 0

    training = ["--width", "2", "--epochs", "1", "--run", "own"]
    assert run_script("trainBaseline.py", "--data", "one", *training)[0] == 0

    final = tmp_path / "checkpoints" / "own" / "final.pt"
    final.rename(final.with_name("last.pt"))
    line = refused(run_script, "trainBaseline.py", "--data", "two", *training, "--resume")
    assert "landmark scheme was" in line


# --- 98 points on 68 ----------------------------------------------------------------------------


def slow_68(points: np.ndarray) -> np.ndarray:
    """(98, 2) -> (68, 2), written out."""
    wflw = {i: 2 * i for i in range(17)}
    wflw |= {i: i + 16 for i in range(17, 22)} | {i: i + 20 for i in range(22, 27)}
    wflw |= {i: i + 24 for i in range(27, 36)} | {36: 60, 39: 64, 42: 68, 45: 72}
    wflw |= {i: i + 28 for i in range(48, 68)}
    found = np.full((68, 2), np.nan)
    for ours, theirs in wflw.items():
        found[ours] = points[theirs]

    thirds = {37: (61, 62), 38: (63, 62), 40: (65, 66), 41: (67, 66)}
    thirds |= {43: (69, 70), 44: (71, 70), 46: (73, 74), 47: (75, 74)}
    for ours, (near, middle) in thirds.items():  # near: the one beside the corner
        found[ours] = (2 * points[near] + points[middle]) / 3

    return found


def test_the_points_in_common():
    assert COMMON_60.num_points == len(WFLW_OF_IBUG) == 60
    points = np.random.default_rng(0).normal(0, 50, (5, 98, 2))
    expected = np.stack([slow_68(face) for face in points])
    np.testing.assert_allclose(to_ibug_68(points), expected, atol=1e-12)

    assert sorted({p for c in COMMON_60.contours for p in c.points}) == list(range(60))
    for scheme in (WFLW_98, IBUG_68):  # of each the common points, their mirror images, the eyes
        same = COMMON_60.same_as[scheme.name]
        assert [same[i] for i in COMMON_60.mirror] == [scheme.mirror[i] for i in same]
        assert tuple(same[i] for i in COMMON_60.outer_eyes) == scheme.outer_eyes
    assert dict(zip(COMMON_60.same_as["iBUG-68"], COMMON_60.same_as["WFLW-98"], strict=True)) == (
        WFLW_OF_IBUG
    )


def test_98_points_are_made_into_68(official_set, tmp_path, run_script):
    """predict.py --points 68 against its own 98 points, which test_predict.py looks at."""
    final = write_checkpoint(tmp_path / "run98" / "final.pt")
    face = read_official_list(official_list(official_set, "test"))[0]
    picture = official_set / "WFLW_images" / face.image
    answers = {}

    for points in (98, 68):
        arguments = ["--box", *face.box, "--checkpoint", final, "--format", "pts"]
        arguments += ["--out", tmp_path / str(points), *["--points", points] * (points == 68)]
        assert run_script("predict.py", picture, *arguments)[0] == 0
        answers[points] = json.loads((tmp_path / str(points) / "landmarks.json").read_text())

    assert (answers[68]["scheme"], answers[68]["made_from"]) == ("iBUG-68", "WFLW-98")
    said = answers[68]["interpolated_along_the_eyelids"]
    assert said == [37, 38, 40, 41, 43, 44, 46, 47]

    whole, made = (
        np.array(answer["files"][0]["faces"][0]["landmarks"]) for answer in answers.values()
    )
    np.testing.assert_allclose(made, slow_68(whole), atol=2e-4)

    (path,) = (tmp_path / "68").glob("*.pts")
    np.testing.assert_allclose(parse_pts(path.read_bytes(), path), made, atol=1e-3)


def test_the_table_says_60_common_points(tmp_path, run_script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    official, data = write_official_set(tmp_path / "68", num_points=68), tmp_path / "data"
    assert run_script(PREPARE, "--wflw", official, "--out", data)[0] == 0

    paths = [
        write_checkpoint(tmp_path / "checkpoints" / f"run{count}" / "final.pt", num_landmarks=count)
        for count in (98, 68)
    ]
    code, output, errors = run_script("test.py", *paths, "--data", data, "--out", "results")

    assert (code, errors) == (0, "") and "metric, 60 common points" in output
    assert "Points: 60 common points of WFLW-98 and iBUG-68; the eight on the eyelids" in output
    assert "60 common points" in Path("results/table.md").read_text()

    metrics = json.loads(Path("results/metrics.json").read_text())
    assert metrics["points"] == "60 common points"

    faces = load_faces(data, "test")
    kept = [point for point in range(68) if point not in (37, 38, 40, 41, 43, 44, 46, 47)]
    eyes = kept.index(36), kept.index(45)
    target = faces.crop_landmarks().double().numpy()[:, kept]

    for path, count in zip(paths, (98, 68), strict=True):
        points = evaluate.predict_landmarks(load_model(path).model, faces, device="cpu")
        points = np.stack([slow_68(face) for face in points]) if count == 98 else points
        expected = 100 * nme(points[:, kept], target, eyes).mean()
        found = metrics["models"][f"run{count}"]["subsets"]["full"]["nme_percent"]
        assert found == pytest.approx(expected, rel=1e-5)
        unmoved = metrics["robustness"][f"run{count}"]["shift"]["0.0"]
        assert unmoved == pytest.approx(expected, rel=1e-5)

    # one that was merely found must fit, and a network of 68 points alone keeps all of them
    code, output, errors = run_script("test.py", "--data", data)
    assert code == 0 and "metric, 68 points" in output
    assert errors.count("\n") == 1 and "98 landmarks" in errors and "60 common points" in errors
