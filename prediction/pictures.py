"""Landmarks of pictures: an overlay of each, and a .pts file of each face if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from dataset.pictures import read_image
from prediction.inputs import BoxSource
from prediction.outputs import Results, describe_faces, overlay_of, write_jpeg, write_pts
from prediction.predictor import LandmarkPredictor, Shot
from utils.progress import progress


def predict_pictures(
    predictor: LandmarkPredictor,
    paths: Sequence[Path],
    boxes_of: BoxSource,
    results: Results,
    *,
    pts: bool,
) -> None:
    """Write what belongs to each picture, and its entry for landmarks.json."""

    def shots() -> Iterator[Shot]:
        for path in progress(paths, desc="pictures", unit="picture"):
            with results.refusing(path):
                image = read_image(path)
                yield predictor.cut(image, *boxes_of(path, image), path=path)

    for shot in predictor.stream(shots()):
        faces = describe_faces(shot)
        height, width = shot.image.shape[:2]
        entry = {"width": width, "height": height, "faces": faces}
        results.entries[shot.path] = entry
        results.count(shot.path, 0, 0.0, faces)

        if not faces:
            tqdm.write(f"{shot.path}: no face")
            continue

        # The landmarks are there, whatever becomes of the files beside them.
        with results.refusing(shot.path):
            file = results.place(shot.path, "_overlay.jpg")
            write_jpeg(file, overlay_of(shot, results.scheme))
            entry["overlay"] = results.name(file)

            for index, face in enumerate(faces if pts else ()):
                file = results.place(shot.path, f"_face{index}.pts")
                write_pts(file, shot.landmarks[index])
                face["pts"] = results.name(file)
