# Two commands for everybody: `make repro` runs the benchmark, `make test` the tests.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# The first Python 3.11 or 3.12 that can make an environment; `make PYTHON=...` chooses another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3 python; do \
	if $$python -c 'import sys, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	2>/dev/null; then command -v $$python; break; fi; done)

# Stages are shell commands: they must find `bench`.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test lint format
repro: $(INSTALLED)
	$(BIN)/dvc repro
	@$(BIN)/bench table
	@echo
	@echo "the report: reports/index.html"
	@echo "its tables: reports/tables/   figures: reports/figures/   image grids: reports/grids/"

# A process for each core, with a thread each; the longest files first.
test: $(INSTALLED)
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

$(INSTALLED): requirements.lock pyproject.toml
	@test -x $(BIN)/pip -o -n "$(PYTHON)" || { echo "error: needs Python 3.11 or 3.12: install one, or say make PYTHON=/path/to/python" >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
