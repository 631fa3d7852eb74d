# Two commands on a fresh machine: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests and the demo share two cores with nothing else; contended OpenMP threads are far slower than one.
TEST_WORKERS ?= 2

.PHONY: help setup demo test test-slow lint check format serve-env demo-base clean

help:            ## Show this list.
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "dftune needs Python 3.11 to 3.13; this is " + sys.version.split()[0] + ". Set PYTHON=python3.11, say.")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## Create .venv and install dftune from the lock (constraints.txt).

demo: $(STAMP)   ## Fine-tune, evaluate and compare a tiny model: a report in under five minutes on two CPU cores.
	$(BIN)/dftune demo

test: $(STAMP)   ## Run the tests, but for those marked slow: some minutes on two cores.
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m "not slow" -q

test-slow: $(STAMP) ## Run the tests marked slow: real servers, kills, simulations, whole flows.
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m slow -q

lint: $(STAMP)   ## Format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test ## What must be green before a commit.

format: $(STAMP) ## Rewrite the code in the project's format.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo-base: $(STAMP) ## Train the demo's base model again (about 20 minutes on two cores).
	$(BIN)/python scripts/train_demo_base.py

serve-env:       ## A separate environment with vLLM, for generation on GPUs (it pins its own torch).
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet 'vllm>=0.18'

clean:           ## Remove the environment and caches (runs/ and prepared/ stay).
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
