"""What predict.py does with pictures and videos: faces found by size, heads turned in the picture,
several views, a second look, a detector's boxes, what is no face, and how landmarks tremble.

    python research/pictures.py sizes LIST IMAGES --out sizes.csv
    python research/pictures.py sizes --figure docs/figures/sizes.png sizes.csv
    python research/pictures.py turns LIST IMAGES
    python research/pictures.py looks LIST IMAGES
    python research/pictures.py doubt LIST IMAGES
    python research/pictures.py trembling LIST IMAGES
    python research/pictures.py jitter

LIST is in WFLW's layout. Differences are paired, with 95 % percentile bootstraps over faces. A face
counts as found where a detection overlaps its annotated box by an IoU of at least 0.5; the one that
overlaps most is taken. "before" is YuNet run once, on pictures shrunk to 1,600 px, and boxes that
are never turned. Jitter is measured in videos in which nothing moves but the sensor's noise:
synthetic faces, 60 frames each, 25 a second; the standard deviation of every coordinate over the
last 50 frames, averaged over points, in px, for a box that stands still and for one that goes with
the last landmarks.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from benchmarks.paired import machine
from dataset.annotations import Annotation, read_official_list
from dataset.crop import overlap_ratios
from dataset.detector import FaceDetector, Faces, inclusive_box, yunet_path
from dataset.pictures import read_image
from dataset.views import DOUBTFUL
from evaluation.tables import markdown_table
from models.checkpoint import SHIPPED
from prediction.predictor import LandmarkPredictor
from prediction.smoothing import LandmarkSmoother
from prediction.tracking import FaceTracker
from research.released import cells, percent_errors
from synthetic.face import draw_face
from utils.files import atomic_write, reports_user_errors
from utils.progress import progress

MIN_IOU = 0.5  # of a detection with the annotated box
# side of the faces, px, and how many are tried: every picture is a large one from 600 px on
SIZES = {20: 200, 24: 200, 32: 200, 48: 200, 96: 120, 200: 60, 400: 40, 800: 40, 1600: 16, 3000: 8}
FILLING = {400: 40, 800: 40, 1600: 40, 3000: 40}  # the same in pictures of √2 times the face
CELL = 2.7  # sides of a face from one to the next in a picture of many
PICTURE = 1152, 864  # px, one megapixel
ANGLES = (0, 20, 30, 45, 60, 90, 120, 150, 180)
VIEWS = 14
SEED = 20_261_127
FRAMES, SETTLED, RATE, VIDEOS = 60, 10, 25.0, 10
NOISES = (2, 5, 10)  # standard deviations, grey levels
VIDEO_SEED = 20_261_125  # of faces made for nothing else
COUNTED = ("filling", "side", "detector", "faces", "found", "detections", "right", "seconds")
LOOKS = (  # whose boxes, views, a second look
    *(("annotated boxes", 1, False), ("annotated boxes", VIEWS, False)),
    *(("YuNet's boxes", 1, False), ("YuNet's boxes", 1, True), ("YuNet's boxes", VIEWS, False)),
    *(("boxes moved at random", 1, False), ("boxes moved at random", 1, True)),
)


class OnePass:
    """YuNet as it was used before: once, on a picture of at most 1,600 px."""

    def __init__(self, path: Path) -> None:
        self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), 0.6)

    def __call__(self, image: np.ndarray) -> Faces:
        height, width = image.shape[:2]
        scale = min(1.0, 1600 / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        seen = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self._net.setInputSize(size)
        rows = self._net.detect(seen)[1]
        rows = np.zeros((0, 15)) if rows is None else rows[np.argsort(-rows[:, -1])]
        boxes = [inclusive_box(*(row[:4] / scale).tolist()) for row in rows]

        return Faces(np.array(boxes).reshape(-1, 4), rows[:, -1], np.zeros(len(rows)))


def enlarged(
    image: np.ndarray, box: Sequence[int], side: int, filling: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The picture of a face at another size, and its box; `filling`, of √2 times the face alone."""
    edges = np.array(box, np.float64) + (0, 0, 1, 1)
    if filling:
        reach = (edges[2] - edges[0]) / math.sqrt(2)
        centre = (edges[:2] + edges[2:]) / 2
        (x0, y0), (x1, y1) = np.maximum(np.rint([centre - reach, centre + reach]), 0).astype(int)
        image, edges = image[y0:y1, x0:x1], edges - (x0, y0, x0, y0)

    scale = side / (edges[2] - edges[0])
    rule = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    larger = cv2.resize(image, None, fx=scale, fy=scale, interpolation=rule)

    return larger, edges * scale - (0, 0, 1, 1)


def scenes(
    faces: list[Annotation], images: Path, side: int, filling: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures with faces of one size, and their boxes (N, 4); small faces share a picture."""
    cells = math.ceil(CELL * side)
    columns, rows = (length // cells for length in PICTURE)
    together = max(columns * rows, 1)

    for start in range(0, len(faces), together):
        shown = [
            enlarged(read_image(images / face.image), face.box, side, filling)
            for face in faces[start : start + together]
        ]
        if together == 1:
            yield shown[0][0], shown[0][1][None]
            continue

        canvas, boxes = np.full((PICTURE[1], PICTURE[0], 3), 100, np.uint8), []
        for index, (picture, box) in enumerate(shown):
            x, y = index % columns * cells, index // columns * cells
            part = picture[:cells, :cells]
            canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
            boxes.append(box + (x, y, x, y))

        yield canvas, np.array(boxes)


def detectors(yunet: Path) -> dict[str, Callable[[np.ndarray], Faces]]:
    return {"before": OnePass(yunet), "after": FaceDetector(yunet)}


def sizes(faces: list[Annotation], images: Path, yunet: Path) -> list[dict]:
    """Rows of what both detectors find among faces of each size."""
    both, rows = detectors(yunet), []
    tasks = [
        (filling, *size) for filling, part in enumerate((SIZES, FILLING)) for size in part.items()
    ]

    for filling, side, count in progress(tasks, desc="sizes", unit="size"):
        tried = faces[:: max(1, len(faces) // count)][:count]
        found = {name: np.zeros(4) for name in both}  # found, detections, right, seconds

        for picture, boxes in scenes(tried, images, side, bool(filling)):
            for name, detector in both.items():
                started = time.perf_counter()
                detected = detector(picture).boxes
                seconds = time.perf_counter() - started
                hits = overlap_ratios(boxes, detected) >= MIN_IOU  # (N, M)
                true, right = hits.any(axis=1).sum(), hits.any(axis=0).sum()
                found[name] += (true, len(detected), right, seconds)

        for name, (*counts, seconds) in found.items():
            numbers = *map(int, counts), round(float(seconds), 3)
            values = (filling, side, name, len(tried), *numbers)
            rows.append(dict(zip(COUNTED, values, strict=True)))

    return rows


def sizes_table(rows: list[dict]) -> str:
    """Recall and precision by size, before and after."""
    lines = []
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        cells = [f"{r['found']}, {r['right']} of {r['detections']}" for r in (before, after)]
        shown = "√2 faces" if int(before["filling"]) else "2.6 faces and more"
        lines.append([f"{before['side']} px", shown, str(before["faces"]), *cells])

    return markdown_table(("face", "picture", "n", "before: found, right", "after"), lines)


def draw_sizes(rows: list[dict], path: Path) -> None:
    """Recall and precision over the face's size, before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), dpi=100, layout="constrained")
    recall, precision = figure.subplots(1, 2, sharey=True)
    ticks = [20, 50, 100, 300, 1000, 3000]

    for axes, part, of, title in (
        (recall, "found", "faces", "Faces found, %"),
        (precision, "right", "detections", "Detections that are a labelled face, %"),
    ):
        for style, where in (("-", "in a larger picture"), ("--", "filling it")):
            for name, colour in (("before", "#b0413e"), ("after", "#1f6f8b")):
                kind = str(int(style == "--")), name
                chosen = [row for row in rows if (row["filling"], row["detector"]) == kind]
                x = [int(row["side"]) for row in chosen]
                y = [100 * int(row[part]) / max(int(row[of]), 1) for row in chosen]
                axes.plot(x, y, style, color=colour, marker="o", ms=3, label=f"{name}, {where}")

        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("side of the face, px")
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.3)

    recall.legend(fontsize=10, loc="lower left")
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def chosen_faces(faces: Faces, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The detections (M, 4) that overlap boxes (N, 4) most, their angles (M,), and which of the N
    were found.
    """
    ratios = overlap_ratios(boxes, faces.boxes)  # (N, K)
    found = ratios.max(axis=1, initial=0) >= MIN_IOU
    best = ratios[found].argmax(axis=1) if found.any() else np.zeros(0, int)

    return faces.boxes[best], faces.angles[best], found


def moved_at_random(boxes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Boxes (N, 4) shifted by up to 15 % and scaled by 0.8 to 1.3."""
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).max(axis=1, keepdims=True)
    shifts = random.uniform(-0.15, 0.15, (len(boxes), 2)) * sides
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 + shifts
    halves = sides * random.uniform(0.8, 1.3, (len(boxes), 1)) / 2

    return np.rint(np.hstack([centres - halves, centres + halves]))


def by_picture(
    faces: list[Annotation], images: Path
) -> Iterator[tuple[np.ndarray, list[Annotation]]]:
    groups: dict[str, list[Annotation]] = {}
    for face in faces:
        groups.setdefault(face.image, []).append(face)
    for name, group in progress(groups.items(), desc="pictures", unit="picture"):
        yield read_image(images / name), group


def moved(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Sides and offsets x, y of the centres of ``others`` (N, 4), in sides of ``boxes``: (N, 3)."""
    sides, other_sides = ((b[:, 2:] - b[:, :2] + 1).max(axis=1) for b in (boxes, others))
    offsets = (others[:, :2] + others[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2

    return np.column_stack([other_sides, offsets]) / sides[:, None]


def comparison(names: Sequence[str], errors: np.ndarray, unit: str = "NME, %") -> str:
    """A table of mean errors (M, N) in %, and of each one's difference from the first."""
    found = cells(errors, *((0, index) for index in range(1, len(names))))
    lines = zip(names, found, ["", *found[len(names) :]], strict=False)

    return markdown_table((f"n = {errors.shape[1]}", unit, "difference"), [*lines], aligned=False)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two (N,)."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def looks(faces: list[Annotation], images: Path, yunet: Path, checkpoint: Path) -> str:
    """NME with several views and second looks, on boxes of three kinds, and how boxes differ."""
    detector, random = FaceDetector(yunet), np.random.default_rng(SEED)
    networks = [
        LandmarkPredictor(checkpoint, device="cpu", refine=again) for again in (False, True)
    ]
    answers: dict[tuple, list] = {look: [] for look in LOOKS}
    truth, spreads, changes = [], [], []

    for image, group in by_picture(faces, images):
        annotated = np.array([face.box for face in group])
        detected, angles, found = chosen_faces(detector(image), annotated)
        if not found.any():
            continue

        truth += [face.landmarks for face, here in zip(group, found, strict=True) if here]
        annotated = annotated[found]
        changes.append(moved(annotated, detected))
        boxes = {
            "annotated boxes": (annotated, None),
            "YuNet's boxes": (detected, angles),
            "boxes moved at random": (moved_at_random(annotated, random), None),
        }

        for look, landmarks in answers.items():
            (places, turns), (_, views, again) = boxes[look[0]], look
            points, spread = networks[again](image, places, angles=turns, views=views)
            landmarks.extend(points)
            if look == LOOKS[1]:
                spreads += (spread.mean(axis=1) / np.ptp(annotated[:, ::2], axis=1)).tolist()

    target = np.array(truth)
    errors = np.stack([percent_errors(np.array(points), target) for points in answers.values()])
    names = [
        kind + (f", {views} views" if views > 1 else "") + (", refined" if again else "")
        for kind, views, again in LOOKS
    ]
    parts = ([0, 2], [0, 1], [2, 3, 4], [5, 6])
    tables = [comparison([names[i] for i in part], errors[part]) for part in parts]
    change = np.concatenate(changes)
    side, x, y = (f"{m:.2f} ± {s:.2f}" for m, s in zip(change.mean(0), change.std(0), strict=True))
    correlation = spearman(np.array(spreads), errors[1])  # of the same boxes and views

    return "\n\n".join(
        [
            f"found: {len(truth)} of {len(faces)}; side {side}, centre off by x {x}, y {y} sides",
            *tables,
            f"Spearman's correlation of spread and error over faces: {correlation:.2f}",
        ]
    )


def turned(image: np.ndarray, face: Annotation, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A picture of 2.6 times the face, turned clockwise about it, and the landmarks in it."""
    left, top, right, bottom = face.box
    centre = (left + right) / 2, (top + bottom) / 2
    size = round(2.6 * (right - left + 1))
    matrix = np.array(cv2.getRotationMatrix2D(centre, -angle, 1), np.float64)
    matrix[:, 2] += (size - 1) / 2 - np.array(centre)
    landmarks = face.landmarks @ matrix[:, :2].T + matrix[:, 2]

    return cv2.warpAffine(image, matrix, (size, size)), landmarks


def turns(faces: list[Annotation], images: Path, yunet: Path, checkpoint: Path) -> str:
    """Faces found and their NME at every angle, before and after."""
    predictor = LandmarkPredictor(checkpoint, device="cpu")
    both, lines = detectors(yunet), []

    for angle in progress(ANGLES, desc="angles", unit="angle"):
        line = [f"{angle}°", str(len(faces))]
        for detector in both.values():
            answers, truth = [], []
            for face in faces:
                image, landmarks = turned(read_image(images / face.image), face, angle)
                detected = detector(image)
                middles = (detected.boxes[:, :2] + detected.boxes[:, 2:]) / 2 - len(image) / 2
                near = np.flatnonzero(np.abs(middles).max(axis=1, initial=0) < len(image) / 6)[:1]
                answers += list(
                    predictor(image, detected.boxes[near], angles=detected.angles[near])
                )
                truth += [landmarks] * len(near)

            errors = percent_errors(np.array(answers), np.array(truth))
            line += [str(len(errors)), *cells(errors[None])]

        lines.append(line)

    heads = ("turn", "n", "found before", "NME, %", "found after", "NME, %")
    return markdown_table(heads, lines, aligned=False)


def trembling(faces: list[Annotation], images: Path, yunet: Path, checkpoint: Path) -> str:
    """How far landmarks move, in % of the outer eyes' distance, for a box that moves by 1 px."""
    predictor = LandmarkPredictor(checkpoint, device="cpu")
    left, right = predictor.scheme.outer_eyes
    moves = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
    lengths: dict[int, list[float]] = {1: [], VIEWS: []}

    for image, group in by_picture(faces, images):
        for face in group:
            boxes = np.array(face.box) + np.tile(moves, 2)
            for count, values in lengths.items():
                still, *others = predictor(image, boxes, views=count)[0]
                eyes = np.linalg.norm(still[left] - still[right])
                values.append(100 * np.linalg.norm(others - still, axis=-1).mean() / eyes)

    names = [f"{count} view" + "s" * (count > 1) for count in lengths]

    return comparison(names, np.array(list(lengths.values())), "moved by, %")


def jitter(checkpoint: Path) -> str:
    """How much landmarks tremble with the sensor's noise, as predicted and smoothed."""
    predictor = LandmarkPredictor(checkpoint, device="cpu")
    lines = []

    for sigma in NOISES:
        for box in ("still", "carried"):
            numbers = progress(range(VIDEOS), desc=f"sigma {sigma}", unit="video")
            rows = [still_video(predictor, number, sigma, box == "carried") for number in numbers]
            before, after, side = np.mean(rows, axis=0)
            lines.append([str(sigma), box, f"{before:.3f}", f"{after:.3f}", f"{side:.0f}"])

    heads = ("noise", "box", "as predicted", "smoothed", "face's side, px")
    table = markdown_table(heads, lines, aligned=False)
    return f"n = {VIDEOS} synthetic faces, {FRAMES} frames each; mean std of points, px\n\n{table}"


def still_video(
    predictor: LandmarkPredictor, number: int, sigma: float, carried: bool
) -> tuple[float, float, int]:
    """One video's jitter as predicted and smoothed, the filter having settled, and its face's side,
    px.

    Args:
        number: of the synthetic face, and of its noise.
        sigma: of the noise, grey levels.
        carried: the box goes with the last landmarks, instead of standing still.
    """
    face, random = draw_face(VIDEO_SEED, "test", number), np.random.default_rng(number)
    tracker = FaceTracker(lambda image: ([list(face.box)], None, [0.0]), FRAMES if carried else 1)
    smoother, landmarks, smoothed = LandmarkSmoother(), [], []

    for i in range(FRAMES):
        noise = random.normal(0, sigma, face.picture.shape)
        frame = np.clip(np.rint(face.picture + noise), 0, 255).astype(np.uint8)
        boxes = tracker.boxes(frame)[0]
        landmarks.append(predictor(frame, boxes))
        smoothed.append(smoother([0], boxes, landmarks[-1], i / RATE))
        tracker.update(landmarks[-1])

    before, after = (np.stack(points)[SETTLED:].std(axis=0) for points in (landmarks, smoothed))

    return float(before.mean()), float(after.mean()), face.box[2] - face.box[0] + 1


def no_faces(image: np.ndarray, boxes: np.ndarray, random: np.random.Generator) -> dict[str, list]:
    """Boxes of a picture without a face in it, where there is room, and of a piece of skin."""
    height, width = image.shape[:2]
    left, top, right, _ = boxes[0]
    side, centre = right - left + 1, (boxes[0, :2] + boxes[0, 2:]) / 2
    corner = centre + random.uniform(-0.2, 0.2, 2) * side - 0.12 * side
    skin = [*corner, *(corner + 0.24 * side)]

    for _ in range(60):
        length = random.uniform(60, 300)
        x, y = random.uniform(0, max(width - length, 1)), random.uniform(0, max(height - length, 1))
        wide = np.array([x - length / 4, y - length / 4, x + 1.25 * length, y + 1.25 * length])
        if overlap_ratios(wide, boxes).max() <= 0.01:
            return {"backgrounds": [[x, y, x + length, y + length]], "pieces of skin": [skin]}

    return {"backgrounds": [], "pieces of skin": [skin]}


def doubt(faces: list[Annotation], images: Path, yunet: Path, checkpoint: Path) -> str:
    """The spread of real faces against that of other things."""
    detector, random = FaceDetector(yunet, min_score=0.3), np.random.default_rng(SEED)
    predictor = LandmarkPredictor(checkpoint, device="cpu", views=VIEWS)
    values: dict[str, list] = {"faces": [], "backgrounds": [], "pieces of skin": [], "noise": []}

    def add(name: str, image: np.ndarray, boxes: Sequence, angles: Sequence[float] | None) -> None:
        if len(boxes):
            places = np.rint(np.array(boxes))
            _, spread = predictor(image, places, angles=angles, views=VIEWS)
            values[name] += (spread.mean(axis=1) / (np.ptp(places[:, ::2], axis=1) + 1)).tolist()

    for image, group in by_picture(faces, images):
        detected, annotated = detector(image), np.array([face.box for face in group])
        boxes, angles, _ = chosen_faces(detected, annotated)
        add("faces", image, boxes, angles)
        for name, places in no_faces(image, np.vstack([annotated, detected.boxes]), random).items():
            add(name, image, places, None)

        coarse = int(2 ** random.integers(1, 8))
        noise = random.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8)
        add("noise", cv2.resize(noise, (256, 256)), [[64, 64, 191, 191]], None)

    real = np.array(values["faces"])
    lines = []
    for name, spreads in values.items():
        if not spreads:
            continue

        each = np.array(spreads)
        auc = "" if name == "faces" else f"{(each[:, None] > real).mean():.3f}"
        middle = " … ".join(f"{100 * x:.1f}" for x in np.percentile(each, (5, 50, 95)))
        doubtful = f"{100 * (each > DOUBTFUL).mean():.1f}"
        lines.append([name, str(len(each)), middle, auc, doubtful])

    heads = ("", "n", "spread, % of the box: 5 %, median, 95 %", "AUC", "doubtful, %")
    return markdown_table(heads, lines, aligned=False)


MEASURES = {"turns": turns, "looks": looks, "doubt": doubt, "trembling": trembling}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What predict.py does with pictures.")
    add = parser.add_argument
    add("part", choices=("sizes", *MEASURES, "jitter"))
    add("source", type=Path, nargs="?", metavar="LIST", help="with --figure, a CSV of sizes")
    add("images", type=Path, nargs="?", metavar="IMAGES", help="folder of LIST's")
    add("--detector", type=Path, metavar="ONNX", help="YuNet (default: fetched)")
    add("--checkpoint", type=Path, default=SHIPPED, metavar="FILE")
    add("--every", type=int, default=1, metavar="N", help="each N-th face only")
    add("--out", type=Path, metavar="CSV", help="rows of sizes")
    add("--figure", type=Path, metavar="FILE", help="draw the rows of sizes")
    args = parser.parse_args(argv)
    if args.every < 1:
        parser.error("--every must be at least 1")
    if args.part != "jitter" and (args.source if args.figure else args.images) is None:
        parser.error("LIST or IMAGES is missing")

    return args


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    if args.figure:
        with args.source.open(newline="") as file:
            draw_sizes(list(csv.DictReader(file)), args.figure)
        return 0

    print(machine())
    if args.part == "jitter":
        print(jitter(args.checkpoint))
        return 0

    faces = read_official_list(args.source)[:: args.every]
    yunet = args.detector or yunet_path()

    if args.part == "sizes":
        rows = sizes(faces, args.images, yunet)
        print(sizes_table(rows))
        if args.out:
            with atomic_write(args.out, "w") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        return 0

    print(MEASURES[args.part](faces, args.images, yunet, args.checkpoint))

    return 0


if __name__ == "__main__":
    sys.exit(main())
