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
