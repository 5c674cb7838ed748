# Skyfleet: every target does its own set-up. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Further arguments for pytest: make test ARGS="-k planner -x"
ARGS ?=
# Of two runs of pytest, those arguments may leave one without a test (its status is then 5)
NONE_IS_FINE := $(if $(ARGS),|| test $$? -eq 5)
# One benchmark instead of all: make bench NAME=launches
NAME ?=
# llama.cpp is compiled once (9 minutes on two cores) and kept outside the tree
LLAMA ?= /var/tmp/skyfleet-llama

PATHS := $(wildcard skyfleet workflows activities api ui bench scripts tests worker.py)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(STAMP) ## Set up .venv from the locked, hashed wheels (PYTHON=python3.12 chooses the Python)

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Skyfleet needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || scripts/debian-packages.sh python3-venv
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: debian-packages
debian-packages: ## Install the Debian packages that tests need (as root or with sudo; says so where there is neither)
	@scripts/debian-packages.sh --optional chromium openssh-client procps prometheus rsync

.PHONY: lint
lint: install ## Check style, types and the import table
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: install ## Format, and fix what can be fixed
	$(BIN)/ruff check --fix $(PATHS)
	$(BIN)/ruff format $(PATHS)

.PHONY: test
test: lint debian-packages ## Lint, then all tests but the slow ones
	PYTHON=$(BIN)/python scripts/test.sh $(ARGS)

.PHONY: test-slow
test-slow: install debian-packages ## The slow tests: a real llama.cpp on the local cloud, full labs
	@command -v c++ >/dev/null || scripts/debian-packages.sh g++
	PYTHON=$(BIN)/python bash tests/slow/install_llama_cpp.sh $(LLAMA)
	LLAMA_SERVER=$(LLAMA)/bin/llama-server $(BIN)/python -m pytest -m "slow and not lab" $(ARGS) $(NONE_IS_FINE)
	scripts/debian-packages.sh --optional curl iproute2 munge openssh-server slurm-wlm
	$(BIN)/python -m tests.labs.aws.runtime
	$(BIN)/python -m tests.labs.slurm.runtime
# Only the labs, each in a box and a process of its own: SkyPilot settles on a home and a server at its first import.
	tests/labs/box.sh $(BIN)/python -m pytest tests/labs/aws -m lab $(ARGS) $(NONE_IS_FINE)
	tests/labs/box.sh $(BIN)/python -m pytest tests/labs/slurm -m lab $(ARGS) $(NONE_IS_FINE)

.PHONY: demo
demo: install ## One launch from request to teardown on this machine, checked against the cloud's ledger
	$(BIN)/python scripts/demo.py

.PHONY: bench
bench: install ## All benchmarks, or one: make bench NAME=launches
	$(BIN)/python -m bench $(NAME)

.PHONY: lock
lock: install ## Pin the dependencies anew: names, versions and hashes, no addresses
	PATH="$(CURDIR)/$(BIN):$$PATH" requirements/compile.sh
	@echo "Look at the difference, then: make install test"

.PHONY: secrets
secrets: ## Make the secrets that docker-compose.yml reads (existing ones are kept)
	@deploy/make-secrets.sh secrets

.PHONY: clean
clean: ## Remove .venv, caches and what was built (never data: `skyfleet up` keeps its own folder)
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
