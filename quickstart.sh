#!/usr/bin/env bash
# Everything once, in minutes, on two CPU cores and without WFLW: renders synthetic faces, prepares them, trains two
# small networks, tests them and shows what they predict. Run it again as often as you like.
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python3}
say() { printf '\n== %s\n' "$1"; }
run() { echo "\$ python $*"; .venv/bin/python "$@"; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "error: Python 3.10 or newer is needed, and $python is not; install it or name one with PYTHON=..." >&2
    exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "error: $python has no venv module; install it with: apt-get install python3-venv" >&2
    exit 1
fi

say "1/6 Installing into .venv"
# An environment that was interrupted while it was made is made anew; one of yours without pip gets it.
unfinished=.venv/.unfinished
if [ -e "$unfinished" ]; then rm -rf .venv; fi
if [ ! -e .venv ]; then mkdir .venv && touch "$unfinished"; fi
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv
rm -f "$unfinished"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
began=$(date +%s)

say "2/6 Rendering 2,000 training and 250 test faces"
run synthetic/createSynthetic.py --out quickstart/synthetic --train 2000 --test 250

say "3/6 Preparing 256 x 256 patches, as for WFLW"
run dataset/createWFLW256.py --wflw quickstart/synthetic --out quickstart/WFLW256

# A small network and a short schedule with a higher rate; the defaults are the published recipe, which takes days.
small=(--data quickstart/WFLW256 --width 8 --lr 2e-2 --epochs 10 --warmup-epochs 1 --mean-shape-init --overwrite)

say "4/6 Training with BatchNorm: width 8, 2,500 steps of batch 8"
run trainBaseline.py "${small[@]}" --run quickstart_bn

say "5/6 Training with SepBN: the same, K = 3 sets, G = 2 groups"
run trainBaselineSepDyBN.py "${small[@]}" --run quickstart_sepbn --temperature 10

say "6/6 Testing both"
run test.py checkpoints/quickstart_bn/final.pt checkpoints/quickstart_sepbn/final.pt \
    --data quickstart/WFLW256 --out quickstart/results

cat <<END

Done, $(($(date +%s) - began)) s after the installation.
Look at     quickstart/results/   table, figures, and faces with predicted and true landmarks
            checkpoints/quickstart_*/curve.png
What next   with WFLW:         python dataset/createWFLW256.py --wflw DIR && python trainBaselineSepDyBN.py
            on your picture:   python predict.py PICTURE --checkpoint checkpoints/quickstart_sepbn/final.pt --whole
            (first: source .venv/bin/activate; --whole wants a picture cropped to the face; for others see README.md)
END
