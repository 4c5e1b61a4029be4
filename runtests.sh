#!/usr/bin/env bash
# Installs everything the tests need in a virtual environment of their own and runs them.
# Arguments go to pytest: bash runtests.sh tests/test_sepbn.py -x
set -euo pipefail
cd "$(dirname "$0")"

environment=${SEPBN_TEST_ENV:-.venv-test}
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $python is older than Python 3.10; set PYTHON to a newer one" >&2
    exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "error: $python has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2
    exit 1
fi
# A folder that is named may hold anything: it is made anew only if this script made it, which its mark says.
mark=.made-by-runtests
if [ "$environment" != .venv-test ] && [ ! -f "$environment/$mark" ] &&
    { [ -e "$environment" ] || [ -L "$environment" ]; } && [ -n "$(ls -A "$environment" 2>&1)" ]; then
    echo "error: $environment was not made by runtests.sh; remove it yourself or set SEPBN_TEST_ENV to another" >&2
    exit 1
fi
rm -rf "$environment"
mkdir -p "$environment"
touch "$environment/$mark"
"$python" -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
"$environment/bin/ruff" check --quiet .
"$environment/bin/ruff" format --quiet --check .
"$environment/bin/mypy" --no-error-summary
"$environment/bin/python" -m pytest --numprocesses auto "$@"
