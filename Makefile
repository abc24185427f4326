# The project's commands; `make` lists them. Set-up happens by itself and once: it runs again when
# pyproject.toml or constraints.txt change.
#
#   PYTHON=python3.12    the interpreter that makes .venv (3.11 or newer)
#   ARGS="seed=0,1"      more words for `make sweep`, `make test` or `make bench` (ARGS="mlp --json")

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup sweep test test-full lint audit format bench docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make .venv and install into it (the others do this by themselves)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) (once; a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable '.[dashboards,dev,gguf,search,slurm,tasks]'
	@touch $@

sweep: $(READY) ## train and compare the three edge choices; a second time trains what is missing
	$(BIN)/gr-sweep -m edges=both,act,weight $(ARGS)

# Two processes of one thread each; conftest.py orders the files, the longest first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY) ## all tests that run here in minutes
	$(PYTEST) $(ARGS)

test-full: $(READY) ## the slow tests too
	$(PYTEST) -m "not network" $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(READY) ## known vulnerabilities of the pinned packages (asks their index)
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

format: $(READY) ## put the code in ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## time a routed step and a dense one; ARGS=mlp for one MLP
	$(BIN)/gr-sweep bench $(if $(filter gpu mlp step,$(firstword $(ARGS))),,step) $(ARGS)

docs: $(READY) ## build the pages of docs/ as a site, docs/_build/index.html; a warning fails
	$(BIN)/python -m sphinx -q -E -W --keep-going --nitpicky docs docs/_build

clean: ## remove the environment and what tools leave behind; outputs/ stays
	rm -rf $(VENV) build dist docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
