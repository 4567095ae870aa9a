# Every target sets up what it needs: a virtual environment in .venv, filled once and again whenever
# pyproject.toml or constraints.txt change. PYTHON names the interpreter to start from, >= 3.11.

PYTHON ?= python3
VENV   ?= .venv
PYTEST_ARGS ?=
WORKERS ?= 2
SECONDS ?= 60
SEED    ?= 0

# Tests start many processes, none of which should compile the package again.
export PYTHONDONTWRITEBYTECODE :=

BIN := $(VENV)/bin
# Twice quiet: errors only; some index set-ups warn once per package.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# One stamp per set of packages, so that a second call installs nothing.
BASE := $(VENV)/.base
DEV  := $(VENV)/.dev

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test quick soak browser check lint format bench tables study docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(BASE) ## the product on a small data set, from nothing to a verdict
	@$(BIN)/layerfuse demo
	@echo "Once in each shell, so that it is found: . $(BIN)/activate"

test: $(DEV) browser ## all tests; PYTEST_ARGS="-m 'not index'" leaves out those that fetch models
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=5 $(PYTEST_ARGS)

quick: $(DEV) ## the tests that take an instant each, without a browser and without models
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile \
	  -m "not slow and not browser and not index" $(PYTEST_ARGS)

soak: $(DEV) ## fuzz, kills and threads, SECONDS=60 for each test from SEED=0; SECONDS=0 repeats one seed
	@SOAK_SECONDS=$(SECONDS) SOAK_SEED=$(SEED) OMP_NUM_THREADS=1 LAYERFUSE_ZOO=all \
	  $(BIN)/python -m pytest -q -s -o timeout=0 tests/soak tests/test_zoo.py $(PYTEST_ARGS)

# Tests open reports in a browser. Where there is none it is installed if that can be done; else they
# fail, and PYTEST_ARGS="-m 'not browser'" leaves them out.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    echo "installing chromium" && apt-get update -qq >/dev/null && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	      chromium fonts-dejavu-core >/dev/null; } || \
	  echo "no browser: install chromium, or leave its tests out: PYTEST_ARGS=\"-m 'not browser'\"" >&2

check: lint ## lint, formatting, types, import order; tables, reference and schema are up to date
	@echo "mypy"
	@$(BIN)/mypy
	@echo "imports"
	@$(BIN)/lint-imports --no-cache --no-logo
	@echo "tables"
	@$(BIN)/python -m benchmarks.tables --check
	@echo "command-line reference"
	@$(BIN)/python docs/reference.py --check
	@echo "schema of the run report"
	@$(BIN)/python docs/schema.py --check

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

study: $(DEV) ## write docs/study.md from results/packaged (python -m benchmarks study measures)
	@$(BIN)/python -m benchmarks.tables

docs: $(DEV) ## the documentation, in docs/_build/html; a warning ends the build
	@$(BIN)/python docs/reference.py
	@$(BIN)/python docs/schema.py
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean: ## remove the environment, caches and builds (not the models in the user's cache)
	rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "layerfuse needs Python 3.11 or newer, got $$($(PYTHON) --version 2>&1);" \
	       "name another one: make PYTHON=/path/to/python3.12 ..." >&2; exit 2; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing layerfuse into $(VENV) (minutes the first time)"
	@$(PIP) install -c constraints.txt -e '.[gguf,report]'
	@touch $@

$(DEV): $(BASE)
	@echo "installing the tools for development into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
