# `make demo` and `make test` install everything they need into .venv; the only requirement is Python
# (3.10 or later) with pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-jax test-jax-versions lint docs docs-serve clean

demo: .venv/installed
	$(BIN)/tfp-ar1 train

# The fast tests, in minutes.
test: .venv/installed
	$(BIN)/python tests/run.py -m "not slow"

# Also the slow tests: killed processes, several workers, notebooks, long Monte Carlo.
test-all: test
	$(BIN)/python tests/run.py -m slow

# The core tests with the lower bounds of all dependencies, with the newest versions, on each Python
# version, and with tfp-nightly. Each has its own environment, created on the first run; `uv` finds
# Python by its name in PATH.
RESOLUTION_lowest := lowest-direct
PYTHON_3.10 := python3.10
PYTHON_3.12 := python3.12
PYTHON_3.13 := python3.13
# It has the files of tensorflow-probability, which the line before has just removed.
INSTEAD_nightly := --prerelease allow --reinstall-package tfp-nightly tfp-nightly
VERSIONS := lowest newest 3.10 3.12 3.13 nightly
$(VERSIONS:%=test-%): test-%: .venv/installed
	$(BIN)/uv venv --quiet --allow-existing --python $(or $(PYTHON_$*),$(BIN)/python) .venv-$*
	$(BIN)/uv pip install --quiet --upgrade --python .venv-$*/bin/python \
		--resolution $(or $(RESOLUTION_$*),highest) -e '.[test]'
	$(if $(INSTEAD_$*),$(BIN)/uv pip uninstall --quiet --python .venv-$*/bin/python tensorflow-probability)
	$(if $(INSTEAD_$*),$(BIN)/uv pip install --quiet --python .venv-$*/bin/python $(INSTEAD_$*))
	$(BIN)/uv pip freeze --python .venv-$*/bin/python | grep -iE '^(tensorflow|tfp|tf.keras|keras|numpy)'
	.venv-$*/bin/python tests/run.py -m "not slow" tests/core

# The core on JAX, in an environment without TensorFlow, installed as the documentation says.
test-jax: .venv/installed
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-jax
	$(BIN)/uv pip install --quiet --python .venv-jax/bin/python \
		'tensorflow-probability==0.25.0' 'jax<=0.6.2' hypothesis keras numpy optax scipy pytest pytest-xdist
	$(BIN)/uv pip install --quiet --python .venv-jax/bin/python --no-deps -e .
	KERAS_BACKEND=jax PYTHONPATH=tests/substrate .venv-jax/bin/python -m pytest -n auto --dist loadfile --noconftest \
		-p core_on_jax -m "not slow" tests/substrate tests/core

# Python, TFP, and the oldest and the newest JAX that this TFP is tested with: docs/versions.md.
JAX_VERSIONS := 3.11/tensorflow-probability==0.25.0/0.4.36 3.11/tensorflow-probability==0.25.0/0.6.2 \
	3.11/tfp-nightly/0.7.2 3.12/tfp-nightly/0.11.2
test-jax-versions: .venv/installed
	for versions in $(JAX_VERSIONS); do \
		set -- $$(echo $$versions | tr / ' ') && echo "Python $$1, $$2, JAX $$3" && \
		PYTHONPATH=. $(BIN)/uv run --quiet --no-project --isolated --prerelease allow --python $$1 \
			--with $$2 --with jax==$$3 --with numpy --with scipy --with pytest --with pytest-xdist \
			python -m pytest -n auto --noconftest tests/substrate || exit 1; \
	done

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Builds the site into site/; a warning, such as a broken link, is an error (but not with --quiet).
# Notebooks are run if they or the library have changed; `make docs EXECUTE=` shows only their text.
EXECUTE := yes
docs: .venv/installed
	EXECUTE=$(EXECUTE) $(BIN)/mkdocs build --strict

docs-serve: .venv/installed
	EXECUTE=$(EXECUTE) $(BIN)/mkdocs serve

# Debian's Python has venv but not always ensurepip, so the system's pip installs the packages.
.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf .built .venv $(VERSIONS:%=.venv-%) .venv-jax build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
