"""From a picture, with or without face boxes, to landmarks in the picture's own pixels.

Example::

    from prediction.predictor import LandmarkPredictor

    predictor = LandmarkPredictor()  # our SepBN network; load it once
    landmarks = predictor("picture.jpg")  # (N, 98, 2) float32, image px, of all faces found
    landmarks = predictor("picture.jpg", [[120, 80, 310, 270]])  # (1, 98, 2), of this box
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dataset.boxes import landmark_box
from dataset.crop import CROP_OFFSET, PATCH_SIZE, Box, PatchFrame, face_patch
from dataset.detector import MIN_TURN, FaceDetector, Faces, yunet_path
from dataset.landmarks import IBUG_68, WFLW_98, LandmarkScheme, scheme_of_network, to_ibug_68
from dataset.pictures import read_image
from dataset.views import make_views, mean_and_spread
from models.checkpoint import SHIPPED, LoadedModel, load_model
from models.folding import fold_normalisation
from utils.device import select_device
from utils.files import UserError

LARGEST_EDGE = 10**9  # px; no picture is as large
HELD_BYTES = 256 << 20  # decoded pictures that may wait for a full batch
# Smaller batches use one thread of the CPU: threads that wait for each other in so short
# operations cost more than they save, ten times as much where other programs keep the cores busy.
SMALL_BATCH = 8
WITHOUT_YUNET = "give the predictor boxes, or a path of the file as its detector="
MIN_EYES = 0.3  # of the face: eye corners that are nearer in the picture tell no turn

Picture = np.ndarray | str | Path
Detector = Callable[[np.ndarray], Faces]
Boxes = Sequence[Sequence[float]] | np.ndarray
Scores = Sequence[float | None] | np.ndarray
Angles = Sequence[float] | np.ndarray


@dataclass
class Shot:
    """A picture, or a frame of a video, with its N faces cut out, and what becomes of them."""

    path: Path
    image: np.ndarray  # (H, W, 3) uint8 BGR
    boxes: list[list[int]]  # N times left, top, right, bottom
    scores: Scores | None  # the detector's; None for boxes that were given
    patches: np.ndarray  # (N, 256, 256, 3) uint8 RGB
    frames: list[PatchFrame]  # where the N patches lie in the image
    seconds: float = 0.0  # from the beginning of a video
    landmarks: np.ndarray = field(init=False)  # (N, P, 2) image px, once they are predicted, …
    spread: np.ndarray = field(init=False)  # … and how far the views differ, (N, P) px


class LandmarkPredictor:
    """A trained network, ready to be called on pictures.

    Args:
        checkpoint: path of a checkpoint (our own form or the released one), or a model that is
            already loaded; by default our SepBN network.
        device: "auto", "cpu", "cuda" or "cuda:N".
        batch_size: faces that go through the network at once.
        points: 68 makes iBUG's 68 landmarks of WFLW's 98: 60 are the same points, the eyelids are
            interpolated along the lids.
        views: slightly different crops of each face, of whose landmarks the mean is the answer; up
            to 14.
        refine: lay a new box about the landmarks, as WFLW lays its own, and predict again. It pays
            for boxes that fit badly, not for YuNet's; needs WFLW's 98 points or iBUG's 68.
        detector: what finds faces where no boxes are given: the path of YuNet's file, or a function
            from an image to `dataset.detector.Faces`. None: YuNet, whose file is fetched once.

    Attributes:
        scheme: the meaning of the P landmarks; `scheme.name` is "WFLW-98", "iBUG-68", or that of a
            scheme of one's own that the checkpoint carries.
        network_scheme: that of the network itself.
        resample, box_scale: how face patches are cut out: as the checkpoint was trained with.

    Call with a picture, which is a path or an image (H, W, 3), uint8, **BGR** (as `cv2.imread`
    gives it), and N boxes (left, top, right, bottom) in image pixels, edges inclusive, as WFLW's
    face boxes are; decimals are rounded. For heads that are turned in the picture there are N
    angles, the degrees by which each box is turned clockwise about its centre. Without boxes the
    detector finds the faces and their angles, best first. Returns (N, P, 2) float32: x, y in image
    pixels, integer coordinates are pixel centres. Landmarks may lie outside their box, and outside
    the image. Boxes may cross the image border; one without area or without any overlap with the
    image is a `UserError`. With ``views=N`` it returns landmarks and their spread over N views,
    (N, P) float32, image px.
    """

    def __init__(
        self,
        checkpoint: str | Path | LoadedModel = SHIPPED,
        *,
        device: str = "auto",
        batch_size: int = 64,
        points: int | None = None,
        views: int = 1,
        refine: bool = False,
        detector: str | Path | Detector | None = None,
    ) -> None:
        self.device = select_device(device)
        self.batch_size = batch_size
        self._detector = FaceDetector(detector) if isinstance(detector, (str, Path)) else detector

        with _one_thread():
            loaded = checkpoint if isinstance(checkpoint, LoadedModel) else load_model(checkpoint)
            # in the crops' own memory order, channels last: a third of the time on a CPU at batch 1
            layout: Any = {"memory_format": torch.channels_last}
            self._model = fold_normalisation(loaded.model).to(self.device, **layout)

        self.name, self.path = loaded.name, loaded.path
        self.config: dict = loaded.config
        self.resample: str = loaded.config["resample"]
        self.box_scale: float = loaded.config["box_scale"]
        self.network_scheme = scheme_of_network(loaded.config, loaded.path)
        self.scheme = _scheme_of_answer(self.network_scheme, points, loaded.path)
        self.refine, self.views = refine, views
        if refine and self.network_scheme not in (WFLW_98, IBUG_68):
            raise UserError(
                f"{loaded.path}: a second look needs the points of {WFLW_98.name} or "
                f"{IBUG_68.name}, which tell where the face ends; it has {self.network_scheme.name}"
            )

    def __call__(
        self,
        picture: Picture,
        boxes: Boxes | None = None,
        *,
        angles: Angles | None = None,
        views: int | None = None,
    ) -> Any:
        image = read_image(picture) if isinstance(picture, (str, Path)) else picture
        _require_image(image)

        if boxes is None:
            self._detector = self._detector or FaceDetector(yunet_path(WITHOUT_YUNET))
            shot = self.cut(image, *self._detector(image))
        else:
            shot = self.cut(image, boxes, None, angles)

        self.predict([shot], views)

        return shot.landmarks if views is None else (shot.landmarks, shot.spread)

    def cut(
        self,
        image: np.ndarray,
        boxes: Boxes,
        scores: Scores | None = None,
        angles: Angles | None = None,
        *,
        path: Path = Path(),
    ) -> Shot:
        """A picture with its faces cut out.

        Raises:
            UserError: a box that cannot be cut out.
        """
        edges = _whole_boxes(boxes)
        turns = np.zeros(len(edges)) if angles is None else np.asarray(angles, np.float64)
        if turns.shape != (len(edges),) or not np.isfinite(turns).all():
            raise ValueError(f"angles must be {len(edges)} numbers in degrees, one for each box")

        patches = np.empty((len(edges), PATCH_SIZE, PATCH_SIZE, 3), np.uint8)
        frames = []

        for out, box, angle in zip(patches, edges, turns.tolist(), strict=True):
            patch, frame = face_patch(image, box, self.resample, self.box_scale, angle=angle)
            cv2.cvtColor(patch, cv2.COLOR_BGR2RGB, dst=out)
            frames.append(frame)

        return Shot(path, image, edges, scores, patches, frames)

    def stream(self, shots: Iterable[Shot]) -> Iterator[Shot]:
        """The shots, with landmarks, in their order; a batch takes the faces of many shots."""
        held: list[Shot] = []
        for shot in shots:
            held.append(shot)
            faces = sum(len(shot.frames) for shot in held)
            if faces >= self.batch_size or sum(shot.image.nbytes for shot in held) > HELD_BYTES:
                self.predict(held)
                yield from held
                held = []

        if held:
            self.predict(held)
            yield from held

    def predict(self, shots: list[Shot], views: int | None = None) -> None:
        """Give the shots their landmarks and spread, after a second look where it is due."""
        frames = [frame for shot in shots for frame in shot.frames]
        patches = np.concatenate([shot.patches for shot in shots])
        if self.refine:
            images = [shot.image for shot in shots for _ in shot.frames]
            first, _ = self.predict_patches(patches, frames, 1)
            for index, (image, points) in enumerate(zip(images, first, strict=True)):
                again = self._second_look(image, points, frames[index])
                if again is not None:
                    patches[index], frames[index] = again.patches[0], again.frames[0]

        landmarks, spread = self.predict_patches(patches, frames, views)
        start = 0
        for shot in shots:
            end = start + len(shot.frames)
            shot.landmarks, shot.spread = landmarks[start:end], spread[start:end]
            start = end

    @torch.inference_mode()
    def predict_patches(
        self, patches: np.ndarray, frames: Sequence[PatchFrame], views: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks (N, P, 2) and their spread (N, P) over the views, float32, in px of the images
        that the N patches (N, 256, 256, 3) uint8 RGB with these frames were cut from.
        """
        count = self.views if views is None else views
        seen = make_views(count, released_geometry=self.config["released_geometry"])
        landmarks = np.empty((len(patches), self.scheme.num_points, 2), np.float32)
        spread = np.empty(landmarks.shape[:2], np.float32)
        step = max(1, self.batch_size // count)

        for start in range(0, len(patches), step):
            batch = torch.from_numpy(patches[start : start + step]).to(self.device)
            small = self.device.type == "cpu" and len(batch) * count < SMALL_BATCH
            with _one_thread() if small else nullcontext():
                crop_px = self._model(seen.crops(batch)).double().cpu().numpy()

            # (B · N, 2P) -> (B, N, P, 2), N views
            crop_px = crop_px.reshape(len(batch), count, -1, 2)
            crop_px = seen.back(crop_px, self.network_scheme.mirror)
            if self.scheme != self.network_scheme:
                crop_px = to_ibug_68(crop_px)

            means, spreads = mean_and_spread(crop_px)
            for index, (points, lengths) in enumerate(zip(means, spreads, strict=True), start):
                landmarks[index] = frames[index].to_image(points + CROP_OFFSET)
                spread[index] = lengths * frames[index].side / PATCH_SIZE

        return landmarks, spread

    def _second_look(
        self, image: np.ndarray, landmarks: np.ndarray, frame: PatchFrame
    ) -> Shot | None:
        """The face that landmarks (P, 2), image px, ask for; None where they cannot be a face's."""
        try:
            box, angle = box_about(landmarks, self.scheme.outer_eyes, frame.angle)
            return self.cut(image, [box], None, [angle])
        except (UserError, ValueError, OverflowError):  # all in one place, far off, or no numbers
            return None


def box_about(landmarks: np.ndarray, eyes: tuple[int, int], angle: float) -> tuple[Box, float]:
    """The box about landmarks (P, 2) as WFLW lays its own, and its angle: that of the outer eye
    corners ``eyes`` where they differ from ``angle`` by more than the network is used to.
    """
    x, y = (landmarks[eyes[1]] - landmarks[eyes[0]]).tolist()
    tilt = math.degrees(math.atan2(y, x))
    apart = math.hypot(x, y) > MIN_EYES * float(np.ptp(landmarks, axis=0).max())
    if apart and abs((tilt - angle + 180) % 360 - 180) > MIN_TURN:
        angle = tilt if abs(tilt) > MIN_TURN else 0.0

    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn, middle = np.array([[cos, -sin], [sin, cos]]), landmarks.mean(axis=0)
    left, top, right, bottom = landmark_box((landmarks - middle) @ turn)  # turned back
    centre = middle + turn @ ((left + right) / 2, (top + bottom) / 2)
    side = right - left + 1
    left, top = np.rint(centre - (side - 1) / 2).astype(int).tolist()

    return (left, top, left + side - 1, top + side - 1), angle


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _require_image(image: object) -> None:
    if image is None:
        raise ValueError(
            "the image is None: cv2.imread could not read its file; give the predictor the path "
            "itself, and it says why"
        )

    said = type(image).__name__
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size:
            return
        said = f"{image.shape} {image.dtype}"

    raise ValueError(f"image must be a path, or (H, W, 3) uint8 in BGR order, not {said}")


def _whole_boxes(boxes: Boxes) -> list:
    """N boxes [left, top, right, bottom] in whole pixels."""
    edges = np.asarray(boxes, np.float64)
    if edges.size == 0:
        return []
    if edges.ndim != 2 or edges.shape[1] != 4 or not (np.abs(edges) < LARGEST_EDGE).all():
        raise ValueError("boxes must be (N, 4) numbers in px: left, top, right, bottom")
    if (np.abs(edges) <= 1).all(axis=1).any():
        raise UserError("a box within one pixel, as if in shares of the picture; give it in px")

    return np.rint(edges).astype(np.int64).tolist()


def _scheme_of_answer(network: LandmarkScheme, points: int | None, path: Path) -> LandmarkScheme:
    """The network's own scheme, or iBUG-68 where 68 ``points`` are asked for and can be made."""
    if points is None or points == network.num_points:
        return network
    if points == IBUG_68.num_points and network == WFLW_98:
        return IBUG_68

    raise UserError(
        f"{path}: {points} points cannot be made of its {network.num_points} ({network.name}); "
        "68 can be made of WFLW's 98"
    )
