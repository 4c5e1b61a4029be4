#!/bin/sh
# All experiments on two prepared sets of faces, short ones first, one process at a time; more than a day on one core.
#
#     research/all_experiments.sh DATA98 DATA68 WORK
#
# The same command again skips what is finished and goes on where it was stopped. Tables go to WORK/SUITE.md.
# PYTHON names the interpreter (default: python).
set -eu
[ $# = 3 ] || { echo "usage: $0 DATA98 DATA68 WORK" >&2; exit 2; }
data98=$1 data68=$2 work=$3
here=$(dirname "$0")
export OMP_NUM_THREADS=1
mkdir -p "$work"

run() { # DATA SUITE [OPTIONS]
    data=$1 suite=$2
    shift 2
    echo "$(date -u +%FT%TZ) $suite $*"
    "${PYTHON:-python}" "$here/experiments.py" --suite "$suite" --data "$data" --work "$work" "$@" > "$work/$suite.part"
    mv "$work/$suite.part" "$work/$suite.md"
}

run "$data98" lengths98 --epochs 25 50
run "$data68" lengths68 --epochs 25 50
run "$data98" lengths98 --epochs 25 50 100
run "$data68" lengths68 --epochs 25 50 100
run "$data98" relatives98
run "$data68" relatives68 --seeds 2
run "$data98" lengths98 --epochs 25 50 100 200
run "$data68" lengths68 --epochs 25 50 100 200
run "$data98" domains
run "$data98" lengths98 --epochs 25 50 100 200 400
run "$data68" lengths68
run "$data68" sets68
run "$data68" widths68
run "$data68" relatives68
run "$data98" real98
run "$data98" lengths98
echo "$(date -u +%FT%TZ) done"
