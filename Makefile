# Everything runs from .venv, which `make install` builds from requirements.lock. Needs Python 3.11, make and git.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION = 0.13.8
BIN = .venv/bin

.PHONY: install demo test check lock format clean
.DEFAULT_GOAL := install

install: .venv/.installed

# uv installs the lock in seconds where pip takes minutes; both check every hash. Prefect's server breaks if the
# `dataclasses` backport that img2dataset asks for is present, so the lock leaves it out and nothing may add it.
.venv/.installed: requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Winnow needs Python 3.11, found: $$("$(PYTHON)" --version). Install it, or name it: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	VIRTUAL_ENV=.venv $(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	@$(BIN)/python -m flows.cli demo

# Two processes: one has the tests that start Ray or Prefect (tests/conftest.py).
test: install
	@$(BIN)/python -m pytest --numprocesses=2 --dist=loadgroup

check: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

lock:
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements.lock >/dev/null

clean:
	rm -rf .venv runs
