# `make demo` and `make test` are all it takes on a fresh machine: each installs what it needs into .venv first,
# and is quick afterwards. Needed beforehand: git, make, Python 3.11 or newer with venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

export UV_PYTHON_DOWNLOADS := never
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test lint bench sim picture lock clean

help: ## Show what there is to make
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10
	@echo
	@echo 'Arguments go in ARGS, as in: make demo ARGS="--duration 60 --json"'

setup: $(VENV)/.dev-installed ## Install everything for development into .venv

demo: $(VENV)/.run-installed ## Watch the autoscaler serve a made-up day on this machine
	@$(BIN)/autoscaler demo $(ARGS)

test: $(VENV)/.dev-installed ## Run the tests
	@.ci/system-tools
	@$(BIN)/python -m pytest -n 4 --dist worksteal $(ARGS)

lint: $(VENV)/.dev-installed ## Check style, types, import rules and deployment files
	@.ci/system-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache
	.ci/lint-deploy $(BIN)/hadolint

bench: $(VENV)/.dev-installed ## Measure against the baselines
	@.ci/system-tools
	@$(BIN)/python -m benchmarks $(ARGS)

sim: $(VENV)/.dev-installed ## Simulate many more seeds than the tests do
	@$(BIN)/python -W ignore -m tests.sim.run --seeds $${SEEDS:-1000} --start $${START:-0} $(ARGS)

picture: $(VENV)/.dev-installed ## Take the README's pictures of the status page from a demo
	@.ci/system-tools
	@$(BIN)/python docs/picture.py $(ARGS)

lock: $(VENV)/.dev-installed ## Resolve the dependencies anew after a change in pyproject.toml
	@.ci/lock $(BIN)/uv

clean: ## Remove what the targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

$(VENV)/.run-installed: requirements-run.lock pyproject.toml .ci/install
	@.ci/install $(VENV) requirements-run.lock
	@touch $@

$(VENV)/.dev-installed: requirements.lock pyproject.toml .ci/install
	@.ci/install $(VENV) requirements.lock
	@touch $(VENV)/.run-installed $@
