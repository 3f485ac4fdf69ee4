#!/usr/bin/env bash
# Run the tests marked `floor` against the oldest Paddle that is supported, in an environment of its own (.venv-floor).
#
#     tools/test_floor.sh [PYTHON]        (or: make test-floor)
#
# Everything but Paddle comes from requirements-dev.lock, so that a difference in results is Paddle's.
set -euo pipefail
cd "$(dirname "$0")/.."

# astor: Paddle 3.0 needs it, later ones (and so the lock) do not
paddle=("paddlepaddle==3.0.0" "astor==0.8.1")
python="${1:-python3.11}"
venv=".venv-floor"
stamp="$venv/.installed"

if [ ! -e "$stamp" ] || [ requirements-dev.lock -nt "$stamp" ] || [ setup.py -nt "$stamp" ] || [ "$0" -nt "$stamp" ]; then
    echo "installing ${paddle[0]} into $venv (once)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    # the lock without Paddle's entry: its line and the indented lines of hashes that follow
    awk '/^[^[:space:]#]/ { skip = /^paddlepaddle==/ } !skip' requirements-dev.lock > "$venv/requirements.lock"
    install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps)
    "${install[@]}" --require-hashes -r "$venv/requirements.lock"
    "${install[@]}" "${paddle[@]}"
    "${install[@]}" --no-build-isolation --editable .
    touch "$stamp"
fi
"$venv/bin/python" -c 'import importlib.metadata as m; print("Paddle", m.version("paddlepaddle"))'
exec "$venv/bin/python" -m pytest -m floor
