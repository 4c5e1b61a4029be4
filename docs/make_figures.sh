#!/usr/bin/env bash
# Makes every figure of README.md, docs/results.md and the model card again, in a few minutes: bash docs/make_figures.sh
# The synthetic faces have a seed that no training used.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" research/pictures.py sizes docs/results_data/face_sizes.csv --figure docs/figures/face_sizes.png
"$python" research/experiment_rows.py lengths --out docs/figures/lengths.png \
    "98 points, 332 + 131 faces=docs/results_data/lengths98.csv" \
    "68 points, 870 + 337 faces=docs/results_data/lengths68.csv"
"$python" synthetic/createSynthetic.py --out "$work/faces" --train 8 --test 300 --seed 2024
"$python" dataset/createWFLW256.py --wflw "$work/faces" --out "$work/data"
"$python" visualize.py checkpoints/sepbn16.pt --data "$work/data" --out "$work/figures"

cp "$work/figures/mapping_parameters.png" "$work/figures/attention_by_subset.png" docs/figures/
"$python" - "$work/figures/faces.png" docs/figures/faces.jpg <<'END'
import sys

import cv2

picture = cv2.imread(sys.argv[1])
small = cv2.resize(picture, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
cv2.imwrite(sys.argv[2], small, [cv2.IMWRITE_JPEG_QUALITY, 88])
END

"$python" - docs/figures/points98.jpg <<'END'
import sys

import cv2
import numpy as np

sys.path.insert(0, ".")
from synthetic.scene import render_head

plain = frozenset(("pose", "occluders", "lighting"))
head = render_head(np.random.default_rng([98, 2, 131]), plain, size=1900)
picture = np.where(head.mask[..., None], head.picture.clip(0, 255) / 2 + 128, 255).astype(np.uint8)
font = cv2.FONT_HERSHEY_SIMPLEX

for part in np.split(np.arange(98), (33, 42, 51, 55, 60, 68, 76, 88, 96)):
    points = head.landmarks[part]
    away = points - points.mean(axis=0)  # numbers stand outside of a part, those of the inner lips inside
    away *= (-1 if part[0] == 88 else 1) / (np.linalg.norm(away, axis=1, keepdims=True) + 1e-9)
    away = {51: (1.2, 0), 55: (0, -1), 96: (0, -1)}.get(part[0], away)

    for number, point, (x, y) in zip(part, points, points + 15 * np.array(away)):
        cv2.circle(picture, np.rint(point).astype(int).tolist(), 3, (0, 0, 200), -1, cv2.LINE_AA)
        (width, height), _ = cv2.getTextSize(str(number), font, 0.45, 1)
        place = round(x - width / 2), round(y + height / 2)
        cv2.putText(picture, str(number), place, font, 0.45, (0, 0, 0), 1, cv2.LINE_AA)

(left, top), (right, bottom) = head.landmarks.min(axis=0), head.landmarks.max(axis=0)
cv2.imwrite(sys.argv[1], picture[round(top) - 40 : round(bottom) + 40, round(left) - 40 : round(right) + 40])
END

"$python" docs/draw_examples.py
"$python" predict.py docs/examples --boxes docs/examples/boxes.csv --checkpoint checkpoints/sepbn16.pt --out "$work/examples"
"$python" - "$work/examples" docs/figures/landmarks.jpg <<'END'
import sys

import cv2
import numpy as np

names = ("glasses", "laugh", "beard", "hat", "smile", "profile")
faces = [cv2.imread(f"{sys.argv[1]}/{name}.jpg_overlay.jpg") for name in names]
faces = [cv2.resize(face, (340, 340), interpolation=cv2.INTER_AREA) for face in faces]
montage = np.vstack([np.hstack(faces[:3]), np.hstack(faces[3:])])
cv2.imwrite(sys.argv[2], montage, [cv2.IMWRITE_JPEG_QUALITY, 92])
END

"$python" benchmarks/page_answers.py --repeats 1 --picture docs/figures/page.png
