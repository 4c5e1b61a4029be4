"""Landmarks without torch: python examples/landmarks_onnx.py NET.onnx PICTURE --detector YUNET.onnx

NET.onnx is what export.py writes, YUNET.onnx the OpenCV Zoo's face_detection_yunet_2023mar.onnx.
Needs numpy, opencv-python and onnxruntime. Prints boxes and landmarks in px of the picture as JSON.
"""

import argparse
import json
import math

import cv2
import numpy as np
import onnxruntime


def find_faces(image, path, side=640):
    """Boxes (left, top, right, bottom), inclusive, of upright faces; `side` px are searched."""
    scale = min(1.0, side / max(image.shape[:2]))
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    seen = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, rows = cv2.FaceDetectorYN.create(path, "", size, 0.6).detect(seen)
    boxes = [(row[:4] / scale).tolist() for row in ([] if rows is None else rows)]

    return [
        (math.floor(x), math.floor(y), math.ceil(x + w) - 1, math.ceil(y + h) - 1)
        for x, y, w, h in boxes
    ]


def cut(image, box, said):
    """The network's crop (128, 128, 3), and the function from its px to those of the picture; the
    metadata's crop_rule, resampling and way_back, step by step.
    """
    left, top, right, bottom = box
    width, height = right - left + 1, bottom - top + 1
    square = max(width, height)
    left -= (square - width) // 2
    top -= (square - height) // 2
    square += square % 2

    side = 2 * max(1, round(square * float(said["box_scale"]) / 2))  # S
    left, top = left - (side - square) // 2 - side // 2, top - (side - square) // 2 - side // 2
    corners = np.float32([[1, 0, -left], [0, 1, -top]])  # black outside of the picture
    patch = cv2.warpAffine(image, corners, (2 * side, 2 * side), flags=cv2.INTER_NEAREST)

    nearest = said["resample"] == "nearest"
    larger = cv2.INTER_AREA if side > 128 else cv2.INTER_LINEAR
    patch = cv2.resize(patch, (256, 256), interpolation=cv2.INTER_NEAREST if nearest else larger)
    half = 0.0 if nearest else 0.5

    return patch[64:192, 64:192], lambda p: (p + 64 + half) * side / 128 - half + (left, top)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net")
    parser.add_argument("picture")
    parser.add_argument("--detector", help="YuNet's file")
    parser.add_argument("--box", nargs=4, type=int, action="append", help="instead of a detector")
    args = parser.parse_args(argv)
    image = cv2.imread(args.picture)
    boxes = args.box or find_faces(image, args.detector)

    session = onnxruntime.InferenceSession(args.net, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    faces = []
    for box in boxes:
        crop, to_picture = cut(image, box, said)
        pixels = (crop[..., ::-1].astype(np.float32) - 127.5) / 128  # RGB
        (points,) = session.run(None, {"crops": pixels.transpose(2, 0, 1)[None]})
        points = to_picture(points.reshape(-1, 2).astype(np.float64))
        faces.append({"box": list(box), "landmarks": points.round(4).tolist()})

    print(json.dumps(faces))


if __name__ == "__main__":
    main()
