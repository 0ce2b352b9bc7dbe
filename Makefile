# `make demo` and `make test` need nothing but Python >= 3.11 and a package index.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: install demo test test-slow lint clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-demo.txt requirements-stream.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: install
	$(RUN) -m launch.demo

# Most of the time of these tests is compilation of programs that run for milliseconds.
test: install lint
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" $(RUN) -m pytest -q -m "not slow" -n auto --dist loadfile

# The TPU compiler, for tests of what it makes of our programs; no TPU is needed.
$(VENV)/installed-tpu: $(VENV)/installed requirements-tpu.txt
	$(RUN) -m pip install --quiet -r requirements-tpu.txt
	touch $@

test-slow: install $(VENV)/installed-tpu
	$(RUN) -m pytest -q -m slow

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) runs data .pytest_cache .ruff_cache .hypothesis
