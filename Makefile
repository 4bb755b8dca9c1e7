# Penstock: everything a contributor or CI runs, as one word each. `make` lists them.
# Needs python3 >= 3.11 with venv, and make; the rest is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.penstock-setup
TORCH := torch==2.13.0
ARGS ?=
FLOOR := 90# per cent of lines that the nightly tests cover, all of src/penstock; it only rises

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup system demo test check bench nightly hardware clean

help: ## show this list
	@echo "Penstock: fault-tolerant data plane for asynchronous RL post-training"
	@echo
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-10s %s\n' "$$name" "$$what"; done
	@echo
	@echo "  ARGS=... is handed on by demo, test, bench and nightly, e.g. make demo ARGS=--help"

setup: $(STAMP) ## make .venv and install everything (once; again after a change of pyproject.toml)
	@echo "setup: $(VENV) is ready"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "setup: $(PYTHON) is too old or missing; Penstock needs Python >= 3.11 (make setup PYTHON=python3.12)"; exit 1; }
	@test -x $(BIN)/python || { echo "setup: making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup: installing $(TORCH) (the largest part; minutes on a slow line)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	@echo "setup: installing penstock and what its demo, benchmark, tests and checks need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench,test,check]'
	@touch $@
	@echo "setup: done"

system: ## install the system packages of tests and benchmarks (Debian's; says so where it may not)
	@tools/system_packages

demo: $(STAMP) ## run the main job: workers, trainer and controller on one plane, killed at random while it learns
	@$(BIN)/python -m penstock demo --chaos $(ARGS)

test: $(STAMP) system ## run the tests
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

check: $(STAMP) ## lint, format, types, import arrows, house style
	@echo "check: ruff";   $(BIN)/ruff check src tests examples tools
	@echo "check: format"; $(BIN)/ruff format --check src tests examples tools
	@echo "check: mypy";   $(BIN)/mypy
	@echo "check: arrows and style"; $(BIN)/python -m pytest -q tests/test_arrows.py tests/test_style.py

bench: $(STAMP) system ## measure: the plane beside memcpy, files and Redis, on this machine
	@$(BIN)/python -m penstock bench $(ARGS)

nightly: $(STAMP) system ## all tests, the long ones included, with their coverage; the machines explored in larger worlds
	@$(BIN)/python -m pytest --cov=penstock --cov-report=term --cov-fail-under=$(FLOOR) $(ARGS)
	@$(BIN)/python -m penstock explore slot --budget-s 1200
	@$(BIN)/python -m penstock explore handshake --budget-s 1200

hardware: $(STAMP) ## only the tests that need RDMA or a GPU; where there is neither, they skip and say so
	@$(BIN)/python -m pytest -m hardware $(ARGS) || { code=$$?; test $$code -eq 5 && echo "hardware: no test needs any"; }

clean: ## remove .venv and whatever tests and tools left in this folder
	rm -rf $(VENV) out htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache dist build
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
