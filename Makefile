# `make demo` and `make test` set up everything they need in .venv; nothing else has to be installed
# but Python (3.10 or later) with pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/tfp-ar1 train

# In two parts: TensorFlow keeps every function that it has traced or compiled until the process ends,
# which adds up to 18 GB over the whole suite.
test: .venv/installed
	status=0; for part in 'tests/test_[a-l]*.py' 'tests/test_[m-z]*.py'; do \
		$(BIN)/python -m pytest -n auto --maxprocesses 4 $$part || status=1; \
	done; exit $$status

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Debian's Python has venv but not always ensurepip, so the pip of the system does the installing.
.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
