# `make demo` and `make test` need Python >= 3.11 and a package index, and nothing else.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Most of the time of the tests is compilation of programs that run for milliseconds. Without the
# fusion emitters of the CPU backend it takes a third; JAX 0.12 does not know that flag.
EMITTERS := --xla_cpu_use_fusion_emitters=false
FAST = XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0 \
  --xla_cpu_parallel_codegen_split_count=1 $$(JAX_PLATFORMS=cpu XLA_FLAGS=$(EMITTERS) $(RUN) \
  -c 'import jax; jax.devices()' >/dev/null 2>&1 && echo $(EMITTERS))"
PYTEST := $(RUN) -m pytest -q
PARALLEL := -n auto --dist loadfile

.PHONY: install demo test smoke test-slow lint check-wheel check-newest check-lowest gpu-check clean

install: $(VENV)/installed

# Editable, so that `import rec2pm_jax` and the command `rec2pm` work from any directory.
$(VENV)/installed: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(RUN) -m launch.demo

# The fast tests, and the examples in the library's docstrings.
test: install lint
	$(FAST) $(PYTEST) -m "not slow" $(PARALLEL)
	$(FAST) $(PYTEST) --doctest-modules rec2pm_jax $(PARALLEL)

# A test or two of every room, in two minutes.
smoke: install
	$(FAST) $(PYTEST) -m "smoke and not slow" $(PARALLEL)

# The TPU compiler, for tests of what it makes of our programs; no TPU is needed.
$(VENV)/installed-tpu: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[dev,tpu]'
	touch $@

test-slow: install $(VENV)/installed-tpu
	$(FAST) $(PYTEST) -m slow $(PARALLEL)

$(VENV)/installed-gpu: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[dev,gpu]'
	touch $@

# On a machine with an NVIDIA GPU, in 12 minutes: its tests, steps, requests, and PyTorch beside them.
# OUT gets the records; FLAGS are those of the check, such as FLAGS=--resume=genrec.tar.gz.
OUT ?= runs/gpu_check
gpu-check: $(VENV)/installed-gpu
	$(RUN) -m launch.benchmarks.gpu_check --output=$(OUT) $(FLAGS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m mypy

# The wheel in a new environment and another directory: prepare, train, evaluate, recommend.
check-wheel: install
	PYTHON=$(PYTHON) tests/package/check_wheel.sh

# Smoke tests on Python 3.12 with the newest versions; skipped where there is no Python 3.12.
check-newest:
	tests/package/check_versions.sh newest

# Smoke tests with the lowest versions that pyproject.toml and requirements.txt allow.
check-lowest:
	PYTHON=$(PYTHON) tests/package/check_versions.sh lowest

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest build dist runs data
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
