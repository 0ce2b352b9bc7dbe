#!/usr/bin/env bash
# Runs the smoke tests in an environment of other versions than the usual ones, kept for the next time.
#   check_versions.sh newest   Python 3.12 with the newest version of everything there
#   check_versions.sh lowest   $PYTHON with the lowest versions that pyproject.toml allows
set -euo pipefail
cd "$(dirname "$0")/../.."
which=${1:?newest or lowest}

# A command of that name may be a shim of pyenv that runs nothing, so try each.
python312() {
  local candidate
  for candidate in python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do
    if "$candidate" -c 'import sys; assert sys.version_info[:2] == (3, 12)' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

case $which in
  newest)
    python=$(python312)
    if [ -z "$python" ]; then
      echo "check-newest: SKIPPED, no Python 3.12 on this machine"
      exit
    fi
    ;;
  lowest) python=${PYTHON:-python3} ;;
  *) echo "error: $which is neither newest nor lowest" >&2; exit 1 ;;
esac

env=.venv-$which
[ -x "$env/bin/python" ] || "$python" -m venv "$env"
"$env/bin/python" -m pip install --quiet --upgrade pip
if [ "$which" = lowest ]; then
  "$env/bin/python" tests/package/lowest.py test >"$env/constraints.txt"
  "$env/bin/python" -m pip install --quiet --editable '.[test]' --constraint "$env/constraints.txt"
else
  "$env/bin/python" -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
fi
"$env/bin/python" -c '
import sys
from importlib.metadata import version
names = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "polars")
print(f"Python {sys.version.split()[0]},", ", ".join(f"{n} {version(n)}" for n in names))'
XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0" "$env/bin/python" -m pytest -q \
  -o cache_dir="$env/pytest_cache" -m "smoke and not slow" -n auto --dist loadfile
