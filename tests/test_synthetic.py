"""The synthetic faces: repeatable bytes, WFLW's layout, points on their features, truthful
attributes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import refused

from dataset.annotations import ATTRIBUTES, read_official_list
from dataset.landmarks import scheme_for
from synthetic import SWITCHES, createSynthetic
from synthetic.camera import Pose, draw_pose
from synthetic.face import _photograph, draw_face
from synthetic.head import LEFT_EYE, RIGHT_EYE, SKIN, load_head, visible_landmarks
from synthetic.light import draw_light
from synthetic.noise import blend, combine, grain
from synthetic.raster import rasterise
from synthetic.skin import draw_brows

SCRIPT = "synthetic/createSynthetic.py"
OPTIONS = "--train 12 --test 2 --seed 4 --workers 2".split()
LISTS = Path("WFLW_annotations/list_98pt_rect_attr_train_test")
MIRROR = np.array(scheme_for(98).mirror)
SCALE, MIDDLE = 120.0, 300.0  # px per head unit; middle of the 600 px canvas of the tests


class Plain:
    """The average head under a pose, in parallel projection."""

    def __init__(
        self, yaw: float = 0.0, pitch: float = 0.0, weights: dict[str, float] | None = None
    ) -> None:
        head = load_head()
        vertices = head.base + head.expression(weights) if weights else head.base
        rotation = Pose(np.radians(yaw), np.radians(pitch), 0.0, 10.0).rotation
        points = vertices @ rotation.T * [SCALE, -SCALE, SCALE] + [MIDDLE, MIDDLE, 0]
        eyes = [head.eye(vertices, side) for side in (0, 1)]
        pupils = np.stack([centre + [0, 0, radius] for centre, radius in eyes]) @ rotation.T
        pupils = pupils[:, :2] * [SCALE, -SCALE] + MIDDLE
        brows = draw_brows(head, np.random.default_rng(3))
        up = rotation[:2, 1] * [1, -1]
        self.landmarks = visible_landmarks(head, points[:, :2], brows, pupils, up)

        closed = np.ones(len(head.triangles), bool)
        seen = rasterise(points.astype(np.float32), head.triangles, (600, 600), closed)
        self.part = np.full((600, 600), -1)
        self.part.reshape(-1)[seen.pixel] = head.part[seen.triangle]

    def part_at(self, point: np.ndarray) -> int:
        x, y = np.rint(point).astype(int)
        return int(self.part[y, x])


def test_rasteriser_agrees_with_a_loop_over_triangles_and_pixels() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-5, 45, (30, 3)).astype(np.float32)
    triangles = rng.integers(0, 30, (40, 3))
    cull = rng.random(40) < 0.5
    got = rasterise(points, triangles, (40, 36), cull)
    nearest = np.full((40, 36), -np.inf)
    owner = np.full((40, 36), -1)

    for k, corners in enumerate(points[triangles].astype(np.float64)):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = corners
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area == 0 or (cull[k] and area > 0):
            continue

        for y, x in np.ndindex(40, 36):
            a = ((bx - x) * (cy - y) - (cx - x) * (by - y)) / area
            b = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) / area
            depth = a * az + b * bz + (1 - a - b) * cz
            if min(a, b, 1 - a - b) >= 0 and depth > nearest[y, x]:
                nearest[y, x], owner[y, x] = depth, k

    drawn = np.full(40 * 36, -1)
    drawn[got.pixel] = got.triangle
    # depths closer than 1/65535 of the range may tie
    assert (drawn == owner.ravel()).mean() > 0.995
    assert np.allclose(got.depth, nearest.ravel()[got.pixel], atol=0.01)
    assert np.allclose(got.weights.sum(axis=1), 1, atol=1e-5)


def test_colours_mix_as_plain_arithmetic_says() -> None:
    rng = np.random.default_rng(0)
    first, second, picture = rng.random((5, 7)), rng.random((5, 7)), rng.random((5, 7, 3))
    first, second, picture = (a.astype(np.float32) for a in (first, second, picture))
    colours = rng.random((3, 3)).astype(np.float32)
    expected = first[..., None] * colours[0] + second[..., None] * colours[1] + colours[2]
    got = combine((first, second), (colours[0], colours[1]), colours[2])
    assert np.allclose(got, expected, atol=1e-6)

    for colour in (colours[0], got):
        mixed = picture.copy()
        blend(mixed[1:, 2:], colour if colour.ndim == 1 else colour[1:, 2:], first[1:, 2:])
        expected = picture + (colour - picture) * first[..., None]
        assert np.allclose(mixed[1:, 2:], expected[1:, 2:], atol=1e-6)
        assert (mixed[0] == picture[0]).all() and (mixed[:, :2] == picture[:, :2]).all()


def test_grain_is_noise_of_unit_variance() -> None:
    noise = grain(np.random.default_rng(0), (200, 200))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert 0.25 < (np.abs(noise) > 1).mean() < 0.38


@pytest.mark.parametrize(("yaw", "most"), [(0, 0.04), (50, 0.12)])
def test_mirrored_heads_obey_the_mirror_permutation(yaw: int, most: float) -> None:
    left, right = Plain(yaw=-yaw).landmarks, Plain(yaw=yaw).landmarks
    distance = np.abs(right[MIRROR] * [-1, 1] + [2 * MIDDLE, 0] - left)
    assert distance.mean() < 0.02 * SCALE and distance.max() < most * SCALE
    assert yaw or (np.diff(left[[60, 64, 68, 72], 0]) > 0).all()


def test_points_lie_where_annotators_put_them() -> None:
    points = Plain().landmarks
    eyes = np.linalg.norm(points[72] - points[60])
    above = (points[[60, 72], 1] - points[[0, 32], 1]) / eyes
    assert (above > 0.03).all() and (above < 0.08).all()  # the contour begins above the eye corners
    assert 0.04 < (points[90, 1] - points[79, 1]) / eyes < 0.075  # the red of the upper lip
    assert 0 < (points[94, 1] - points[90, 1]) / eyes < 0.016  # a closed mouth's inner edges


def test_eye_points_surround_the_eyeballs() -> None:
    face = Plain()
    for ring, pupil, part in ((range(60, 68), 96, RIGHT_EYE), (range(68, 76), 97, LEFT_EYE)):
        centre = face.landmarks[list(ring)].mean(axis=0)
        assert face.part_at(centre) == part and face.part_at(face.landmarks[pupil]) == part
        for k in ring:
            outside = face.landmarks[k] + (face.landmarks[k] - centre) * 0.3
            assert face.part_at(outside) == SKIN

        lids = face.landmarks[[ring[2], ring[6]]]
        assert face.part_at(lids[0] + [0, 0.03 * SCALE]) == part
        assert face.part_at(lids[1] - [0, 0.03 * SCALE]) == part


def test_closed_eyes_and_an_open_mouth_move_their_points() -> None:
    rest, moved = Plain(), Plain(weights={"eyeBlinkLeft": 1, "eyeBlinkRight": 1, "jawOpen": 1})

    def gap(face: Plain, upper: int, lower: int) -> float:
        return float(face.landmarks[lower, 1] - face.landmarks[upper, 1])

    for upper, lower in ((62, 66), (70, 74)):
        assert gap(moved, upper, lower) < 0.35 * gap(rest, upper, lower)

    assert gap(moved, 90, 94) > gap(rest, 90, 94) + 0.2 * SCALE
    assert gap(moved, 54, 16) > gap(rest, 54, 16) + 0.15 * SCALE


@pytest.mark.parametrize("yaw", [35, 60, 85])
def test_far_contour_lies_on_the_visible_outline(yaw: int) -> None:
    face = Plain(yaw=yaw)
    near, far = face.landmarks[[4, 8, 12]], face.landmarks[20:27]
    # the far cheek: the picture's right when the head turns to the right
    assert all(face.part_at(point - [0.03 * SCALE, 0]) != -1 for point in far)
    assert sum(face.part_at(point + [0.06 * SCALE, 0]) == -1 for point in far[:4]) >= 3
    assert all(face.part_at(point) == SKIN for point in near)


def test_a_face_depends_on_seed_split_and_index_only() -> None:
    first = draw_face(5, "train", 2)
    others = draw_face(5, "test", 2), draw_face(5, "train", 3), draw_face(6, "train", 2)
    again = draw_face(5, "train", 2)  # with others in between

    assert (first.picture == again.picture).all() and first.box == again.box
    assert (first.landmarks == again.landmarks).all()
    assert not any(np.array_equal(other.picture, first.picture) for other in others)


def test_points_and_boxes_fit() -> None:
    for index in range(12):
        face = draw_face(1, "train", index)
        left, top, right, bottom = face.box
        side = max(right - left, bottom - top) + 1
        assert face.picture.dtype == np.uint8 and face.picture.ndim == 3
        middle = np.array([left + right, top + bottom]) / 2
        assert np.abs(face.landmarks - middle).max() < side  # inside the patch of twice the box
        assert np.abs(face.landmarks.mean(axis=0) - middle).max() < 0.35 * side
        height, width = face.picture.shape[:2]
        overlap = (min(right, width - 1) - max(left, 0)) * (min(bottom, height - 1) - max(top, 0))
        assert overlap > 0.5 * (right - left) * (bottom - top)


def test_attributes_follow_what_is_shown() -> None:
    assert Pose(np.radians(70), 0, 0, 10).large and Pose(0, np.radians(-35), 0, 10).large
    assert not Pose(np.radians(15), np.radians(-10), np.radians(8), 10).large

    rng = np.random.default_rng(0)
    assert not any(draw_pose(rng, vary=False).large for _ in range(50))
    assert not draw_light(rng, vary=False).remarkable

    mild = [light for light in (draw_light(rng) for _ in range(200)) if not light.remarkable]
    assert 80 < len(mild) < 180
    assert all(0.4 < light.ambient.mean() + light.colours.sum(0).mean() for light in mild)

    everything_off = frozenset(SWITCHES)
    flags = np.array([draw_face(2, "train", k, everything_off).attributes for k in range(8)])
    assert not flags[:, [ATTRIBUTES.index("largepose"), ATTRIBUTES.index("illumination")]].any()

    noise = np.repeat(rng.uniform(0, 255, (256, 256, 1)), 3, axis=2).astype(np.float32)
    sharpness: dict[bool, list[float]] = {False: [], True: []}

    for k in range(40):
        picture, blurred = _photograph(noise.copy(), np.random.default_rng(k))
        fine = cv2.absdiff(picture, cv2.GaussianBlur(picture, (0, 0), 2)).mean()
        sharpness[blurred].append(float(fine) / max(float(picture.std()), 1))

    assert len(sharpness[True]) > 4 and np.median(sharpness[True]) < np.median(sharpness[False])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    assert createSynthetic.main(["--out", str(out), *OPTIONS]) == 0
    return out


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_any_number_of_workers_writes_the_same_bytes(
    drawn: Path, tmp_path: Path, run_script
) -> None:
    code, _, errors = run_script(SCRIPT, "--out", tmp_path / "one", *OPTIONS, "--workers", 1)
    assert code == 0, errors
    assert _content(tmp_path / "one") == _content(drawn)


def test_layout_is_wflws_own(drawn: Path) -> None:
    for split, count in (("train", 12), ("test", 2)):
        path = drawn / LISTS / f"list_98pt_rect_attr_{split}.txt"
        assert all(len(line.split()) == 207 for line in path.read_text().splitlines())
        faces = read_official_list(path)
        assert len(faces) == count and len({face.image for face in faces}) == count

        for face in faces:
            picture = cv2.imread(str(drawn / "WFLW_images" / face.image))
            expected = draw_face(4, split, int(Path(face.image).stem.split("_")[1]))
            assert picture.shape == expected.picture.shape
            assert np.abs(picture.astype(int) - expected.picture).mean() < 25
            assert np.allclose(face.landmarks, expected.landmarks, atol=1e-4)
            assert face.box == expected.box and face.attributes == expected.attributes


def test_a_finished_set_stays_and_an_interrupted_one_is_completed(drawn: Path, run_script) -> None:
    arguments = ("--out", drawn, *OPTIONS)
    before, state = _content(drawn), drawn / "synthetic.json"
    code, out, _ = run_script(SCRIPT, *arguments)
    assert code == 0 and "already holds" in out
    assert str(drawn) in refused(run_script, SCRIPT, *arguments, "--seed", 5)

    finished = state.read_text()
    state.write_text("7")
    assert f"; remove {drawn}" in refused(run_script, SCRIPT, *arguments)

    state.write_text(json.dumps({**json.loads(finished), "finished": False}))
    (drawn / LISTS / "list_98pt_rect_attr_test.txt").unlink()
    code, _, errors = run_script(SCRIPT, *arguments)
    assert code == 0, errors
    assert _content(drawn) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_and_no_list(tmp_path: Path, number: int) -> None:
    options = ["--out", tmp_path, "--train", "5000", "--workers", "2"]
    command = [sys.executable, createSynthetic.__file__, *options]

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not list(tmp_path.rglob("*.jpg")):
            assert process.poll() is None
            time.sleep(0.05)

        # Ctrl-C reaches the group; the others the process that was started, not its workers
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        # it is open, and this fails, as long as any worker lives
        errors = process.communicate(timeout=60)[1]

    assert "Traceback" not in errors and not list(tmp_path.rglob("*.txt"))
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert errors.splitlines()[-1] == "interrupted; the same command makes the set again"


@pytest.mark.parametrize("damage", ["picture gone", "picture cut", "list cut"])
def test_a_finished_set_that_was_damaged_is_made_again(
    drawn: Path, tmp_path: Path, run_script, damage: str
) -> None:
    shutil.copytree(drawn, tmp_path / "set")
    picture = next((tmp_path / "set/WFLW_images").rglob("*.jpg"))
    list_file = tmp_path / "set" / LISTS / "list_98pt_rect_attr_train.txt"

    if damage == "picture gone":
        picture.unlink()
    elif damage == "picture cut":
        picture.write_bytes(picture.read_bytes()[:100])
    else:
        list_file.write_text(list_file.read_text().splitlines()[0] + "\n")

    code, output, errors = run_script(SCRIPT, "--out", tmp_path / "set", *OPTIONS)
    assert code == 0 and "already holds" not in output, errors
    assert _content(tmp_path / "set") == _content(drawn)
