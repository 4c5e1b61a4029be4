#!/usr/bin/env bash
# Ten minutes on a CUDA device: tests, step times, and two networks trained on synthetic faces.
#
#     OUT=FOLDER benchmarks/gpu.sh [--minutes 9] [--quick]
#
# Results go to OUT (default: runs/gpu) as they come, so an end at any moment leaves something: log.txt, table.csv,
# sepbn.csv and bn.csv (the trainings' logs), and both networks in pieces of at most 15 MiB; the log says how to
# join them. Everything else, about 20 GB, goes to a folder of its own in TMPDIR (/dev/shm, where there is memory,
# spares the disk) and is removed. Needs torch, numpy, opencv, tqdm, matplotlib and pytest; no network.
# PYTHON names the interpreter (default: python3). --quick tries everything on the CPU with tiny networks.
#
# The plan for 9 minutes, in seconds from the start, on 16 cores (one renders about 45 faces a second):
#
#       0 -  20   the card; about 2,000 faces, to learn how many a second are rendered and prepared
#      20 - 185   meanwhile, on all cores but two: about 60,000 faces
#      20 -  80   the tests that need CUDA (tests/test_cuda.py, tests/test_sepbn.py)
#      80 - 185   the table: ms a step, as a CUDA graph, eager and compiled, of four normalisations;
#                 fp32 means TF32 in convolutions, as torch has it
#     185 - 355   SepBN, as many epochs as the step times of the table allow, and its network packed
#     355 - 530   BatchNorm, trained alike
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export OUT=${OUT:-$root/runs/gpu}
mkdir -p "$OUT"

{
    if command -v nvidia-smi > /dev/null; then nvidia-smi; fi
    PYTHONUNBUFFERED=1 "${PYTHON:-python3}" "$root/benchmarks/gpu.py" "$@"
} 2>&1 | tee "$OUT/log.txt"
