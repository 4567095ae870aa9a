# Every target sets up what it needs: a virtual environment in .venv, filled once and again whenever
# pyproject.toml or constraints.txt change. PYTHON names the interpreter to start from, >= 3.11.

PYTHON ?= python3
VENV   ?= .venv
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# Twice quiet: errors only; some index set-ups warn once per package.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# One stamp per set of packages, so that a second call installs nothing.
BASE := $(VENV)/.base
DEV  := $(VENV)/.dev

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check lint format bench tables study clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(BASE) ## the product on a small data set, from nothing to a verdict
	@$(BIN)/layerfuse demo

test: $(DEV) ## all tests; PYTEST_ARGS="-m 'not index'" leaves out those that fetch models
	@$(BIN)/python -m pytest --durations=5 $(PYTEST_ARGS)

check: lint ## lint, formatting, types, and that tables are those of the results
	@echo "mypy"
	@$(BIN)/mypy
	@echo "tables"
	@$(BIN)/python -m benchmarks.tables --check

lint: $(DEV) ## lint and formatting only
	@echo "ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "ruff format --check"
	@$(BIN)/ruff format --check --quiet --diff .

format: $(DEV) ## rewrite the code as the formatter wants it
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format .

bench: $(DEV) ## the benchmarks; results go where benchmarks/README.md says
	@$(BIN)/python -m benchmarks

tables: $(DEV) ## write the READMEs' tables from benchmarks/results
	@$(BIN)/python -m benchmarks.tables

study: $(DEV) ## write docs/study.md from results/packaged (measured by layerfuse reproduce)
	@$(BIN)/python -m benchmarks.tables

clean: ## remove the environment, caches and builds (not the models in the user's cache)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "layerfuse needs Python 3.11 or newer, got $$($(PYTHON) --version 2>&1);" \
	       "name another one: make PYTHON=/path/to/python3.12 ..." >&2; exit 2; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing layerfuse into $(VENV) (minutes the first time)"
	@$(PIP) install -c constraints.txt -e '.[gguf]'
	@touch $@

$(DEV): $(BASE)
	@echo "installing the tools for development into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
