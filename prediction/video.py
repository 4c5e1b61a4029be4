"""Landmarks of videos: an overlay of each, and one line per frame in a .jsonl file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
from utils.progress import progress

RATE = 25.0  # frames a second where a file does not say


class Video:
    """A video file, or a moving picture, to read frame after frame, upright.

    Attributes:
        fps: mean frames a second.
        announced: frames as far as the file says, 0 if it does not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._capture = open_video(path)
        self._animation = None
        if not self._capture.read()[0]:  # FFmpeg reads no moving WebP and AVIF
            there, animation = cv2.imreadanimation(str(path))
            self._animation = animation if there and len(animation.frames) > 1 else None

        self._capture = open_video(path)
        fps, count = (
            self._capture.get(what) for what in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
        )
        if self._animation is not None:
            count = len(self._animation.frames)
            fps = 1000 * count / max(sum(self._animation.durations), 1)

        # containers without a rate say 0, nan or nonsense
        self.fps = fps if 1 <= fps <= 1000 else RATE
        self.announced = max(0, int(count))

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        """(H, W, 3) uint8 BGR and the time in s of each frame; without any, a `UserError`."""
        count, last = 0, -1 / self.fps

        for frame, seconds in self._animated() if self._animation is not None else self._captured():
            # times that stand still or run backwards are no times
            last = seconds if seconds > last else last + 1 / self.fps
            count += 1
            yield frame, last

        if not count:
            raise UserError(
                f"{self.path}: no frame could be read; not a video, a damaged one, or an unknown "
                "codec"
            )

    def _captured(self) -> Iterator[tuple[np.ndarray, float]]:
        try:
            while True:
                there, frame = self._capture.read()
                if not there:
                    break
                yield frame, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        finally:
            self._capture.release()

    def _animated(self) -> Iterator[tuple[np.ndarray, float]]:
        assert self._animation is not None
        seconds = 0.0
        for frame, duration in zip(self._animation.frames, self._animation.durations, strict=True):
            yield np.ascontiguousarray(frame[..., :3]), seconds
            seconds += duration / 1000


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
    video = Video(path)
    identities, smoother = Identities(), LandmarkSmoother()
    rows, overlay = results.place(path, ".jsonl"), results.place(path, "_overlay.mp4")
    count = found = 0

    with atomic_write(rows, "w") as file, atomic_video(overlay, video.fps) as write:
        for shot in _shots(predictor, video, boxes_of, every):
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

    height, width = shot.image.shape[:2]
    names = {"rows": results.name(rows), "overlay": results.name(overlay)}
    told = {"frames": count, "frames_per_second": video.fps}
    results.entries[path] = {"width": width, "height": height} | names | told


def _shots(
    predictor: LandmarkPredictor, video: Video, boxes_of: BoxSource, every: int
) -> Iterator[Shot]:
    """Each frame with its faces and their landmarks."""
    tracker = FaceTracker(partial(boxes_of, video.path), every)

    def shots() -> Iterator[Shot]:
        total = video.announced or None
        for frame, seconds in progress(video, desc=video.path.name, total=total, unit="frame"):
            shot = predictor.cut(frame, *tracker.boxes(frame), path=video.path)
            shot.seconds = seconds
            yield shot

    if every == 1:
        yield from predictor.stream(shots())
        return

    for shot in shots():  # one by one: boxes may need the landmarks of the frame before
        predictor.predict([shot])
        tracker.update(shot.landmarks)
        yield shot
