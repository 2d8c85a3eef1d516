# `make demo` and `make test` set up everything they need in .venv; nothing else has to be installed
# but Python (3.10 or later) with pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint clean

demo: .venv/installed
	$(BIN)/tfp-ar1 train

# What finds faults, in minutes.
test: .venv/installed
	$(BIN)/python tests/run.py -m "not slow"

# And what takes long: killed processes, several workers, notebooks, long Monte Carlo.
test-all: test
	$(BIN)/python tests/run.py -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Debian's Python has venv but not always ensurepip, so the pip of the system does the installing.
.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
