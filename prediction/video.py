"""Landmarks of videos: an overlay of each, and one line per frame in a .jsonl file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from prediction.inputs import BoxSource, open_video
from prediction.outputs import Results, describe_faces, overlay_of
from prediction.predictor import LandmarkPredictor, Shot
from prediction.smoothing import LandmarkSmoother
from prediction.tracking import FaceTracker, Identities
from utils.files import UserError, atomic_write, describe_os_error, require_file_or_nothing
from utils.progress import note, progress

RATE = 25.0  # frames a second where a file does not say
WHOLE = 0.9  # of the announced frames, or of their time, at least: announcements are estimates
Frames = Iterator[tuple[np.ndarray, float]]  # (H, W, 3) uint8 BGR, and the time of each in s


def read_video(path: Path) -> tuple[float, int, Frames]:
    """Mean frames a second of a video or a moving picture, how many frames it announces, 0 if it
    does not, and its frames, upright, (H, W, 3) uint8 BGR, with the time of each in s.
    """
    capture = open_video(path)
    fps, count = (capture.get(what) for what in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
    frames = _captured(capture)
    first = next(frames, None)

    if first is not None:
        frames = chain([first], frames)
    else:  # FFmpeg reads no moving WebP and AVIF
        there, animation = cv2.imreadanimation(str(path))
        if not there or len(animation.frames) < 2:
            raise UserError(
                f"{path}: no frame could be read; not a video, a damaged one, or an unknown codec"
            )

        ends = np.cumsum(animation.durations) / 1000
        fps, count = len(ends) / max(ends[-1], 1e-3), len(ends)
        pixels = (np.ascontiguousarray(frame[..., :3]) for frame in animation.frames)
        frames = zip(pixels, [0.0, *ends.tolist()], strict=False)

    # containers without a rate say 0, nan or nonsense
    fps = fps if 0.01 <= fps <= 1000 else RATE

    return fps, max(0, int(count)), _in_time(frames, fps)


def _captured(capture: cv2.VideoCapture) -> Frames:
    while (read := capture.read())[0]:
        yield read[1], capture.get(cv2.CAP_PROP_POS_MSEC) / 1000


def _in_time(frames: Frames, fps: float) -> Frames:
    """The frames; times that stand still or run backwards are no times."""
    last = -1 / fps
    for frame, seconds in frames:
        last = seconds if seconds > last else last + 1 / fps
        yield frame, last


@contextmanager
def atomic_video(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """What writes the frames (H, W, 3) uint8 BGR of an MP4, which takes its name at the end, and
    only without an error.

    The frame size is the first frame's; the codec drops the last row or column of an odd size.
    """
    require_file_or_nothing(path)
    temporary = path.with_name(f".{path.stem[:40]}.tmp{path.suffix}")
    writer, codec = cv2.VideoWriter(), cv2.VideoWriter.fourcc(*"mp4v")

    def write(frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        if not (writer.isOpened() or writer.open(str(temporary), codec, fps, (width, height))):
            raise UserError(f"cannot write a {width} x {height} video in {path.parent}")

        writer.write(frame)

    try:
        yield write
        writer.release()
        os.replace(temporary, path)
    except OSError as error:
        raise describe_os_error(error, path) from error
    finally:
        writer.release()
        temporary.unlink(missing_ok=True)


def predict_video(
    predictor: LandmarkPredictor,
    path: Path,
    boxes_of: BoxSource,
    results: Results,
    *,
    smooth: bool,
    every: int,
) -> None:
    """Write a video's overlay and its lines, one per frame, and its entry for landmarks.json.

    Args:
        smooth: landmarks through :class:`LandmarkSmoother`.
        every: frames from one search for faces to the next.
    """
    fps, announced, frames = read_video(path)
    shown = progress(frames, desc=path.name, total=announced or None, unit="frame")
    identities, smoother = Identities(), LandmarkSmoother()
    rows, overlay = results.place(path, ".jsonl"), results.place(path, "_overlay.mp4")
    count = found = 0

    with atomic_write(rows, "w") as file, atomic_video(overlay, fps) as write:
        for shot in _shots(predictor, shown, partial(boxes_of, path), every):
            ids = identities(shot.boxes, shot.seconds)
            if smooth:
                shot.landmarks = smoother(ids, shot.boxes, shot.landmarks, shot.seconds)

            time, faces = round(shot.seconds, 4), describe_faces(shot, ids)
            file.write(json.dumps({"frame": count, "time": time, "faces": faces}) + "\n")
            write(overlay_of(shot, results.scheme, ids))
            results.count(path, count, time, faces)
            count += 1
            found += len(faces)

    if not found:
        tqdm.write(f"{path}: no face")
    if max(count, shot.seconds * fps) < WHOLE * announced:
        note(f"note: {path}: {count} frames of {announced} could be read; it may have been cut")

    height, width = shot.image.shape[:2]
    entry = {"width": width, "height": height, "rows": results.name(rows)}
    told = {"overlay": results.name(overlay), "frames": count, "frames_per_second": fps}
    results.entries[path] = entry | told


def _shots(
    predictor: LandmarkPredictor,
    frames: Iterable[tuple[np.ndarray, float]],
    find: Callable[[np.ndarray], tuple],
    every: int,
) -> Iterator[Shot]:
    """Each frame with its faces and their landmarks."""
    tracker = FaceTracker(find, every)

    def shots() -> Iterator[Shot]:
        for frame, seconds in frames:
            shot = predictor.cut(frame, *tracker.boxes(frame))
            shot.seconds = seconds
            yield shot

    if every == 1:
        yield from predictor.stream(shots())
        return

    for shot in shots():  # one by one: boxes may need the landmarks of the frame before
        predictor.predict([shot])
        tracker.update(shot.landmarks)
        yield shot
