#!/usr/bin/env bash
# Builds the wheel, installs it into a new environment and uses it from another directory:
# prepares a log, trains ten steps, evaluates and recommends. PYTHON says which Python.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/env"
export PATH="$work/env/bin:$PATH"
unset PYTHONPATH
# A copy, since setuptools leaves its build folder in the tree that it builds.
mkdir "$work/source" "$work/elsewhere"
cd "$root"
cp -r pyproject.toml requirements.txt README.md LICENSE rec2pm_jax launch "$work/source"
pip install --quiet --upgrade pip
pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$work/source"
pip install --quiet "$work"/dist/*.whl

cd "$work/elsewhere"
export JAX_PLATFORMS=cpu XLA_FLAGS="--xla_backend_optimization_level=0"
python -c 'import rec2pm_jax, sys; assert rec2pm_jax.__file__.startswith(sys.prefix), rec2pm_jax'
rec2pm --help
python -m launch.train --help >help.txt || true  # absl exits with 1 after printing its help
grep --quiet -e --workdir help.txt

python "$root/tests/package/write_log.py" log.csv
rec2pm prepare --source=interactions --input=log.csv --user_column=uid --item_column=sku \
  --time_column=ts --output_dir=data --noprogress
rec2pm train --config=development --data=data --workdir=run --config.data.segment=5 \
  --config.data.segments=2 --config.train.steps=10 --config.train.batch_size=8
rec2pm evaluate --workdir=run --json=record.json
echo '{"user": "ann", "item": "tea", "time": "2024-06-01T12:00:00Z"}
{"user": "ann", "recommend": 3, "time": "2024-06-02T12:00:00Z"}' | rec2pm stream --workdir=run --events=- --output=answers.jsonl
cat answers.jsonl
python - <<'END'
import importlib.resources
import json

import rec2pm_jax

assert (importlib.resources.files("rec2pm_jax.serve") / "page/index.html").is_file()

[record] = json.load(open("record.json"))
assert record["step"] <= 10 and 0 <= record["metrics"]["ndcg@10"] <= 1, record
model = rec2pm_jax.load("run")
user = model.observe(model.new_user(), {"item": "tea", "time": "2024-06-01T12:00:00Z"})
best = model.recommend(user, k=3, time="2024-06-02T12:00:00Z")
answer = json.loads(open("answers.jsonl").read())
assert [r.item for r in best] == [r["item"] for r in answer["items"]], (best, answer)
print("the wheel works:", ", ".join(r.item for r in best))
END
