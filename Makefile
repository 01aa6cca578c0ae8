# `make demo` and `make test` start from a bare Debian with python3, git, make and root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# The virtual environment is made again when what it is made from changed, and only then.
READY := .venv/.ready-$(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
CRATES := $(wildcard controller/guest/init/Cargo.toml controller/host/logkeeper/Cargo.toml)
PYTEST := $(BIN)/python -m pytest
# Unit tests share the two cores; the others start real processes and take turns.
unit_OPTIONS := -n 2

.PHONY: help setup demo test check unit node cluster chaos chaos-first chaos-second bench fmt clean

help: ## Show this list.
	@grep -hE '^[a-z ]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 26

setup: $(READY) ## Install and build what this machine lacks.
	@$(BIN)/python -m controller setup

demo: setup ## Show an Instance living, from Pending to deleted.
	@$(BIN)/torpor demo

# Real processes mostly wait, so two lanes of them share the cores; the first one's words come last.
test: setup ## Everything: check and unit tests, then node, cluster and chaos tests in two lanes.
	@failed=; lane=$$(mktemp); trap 'rm -f "$$lane"' EXIT; \
	run() { for part in "$$@"; do \
	  SECONDS=0; \
	  if $(MAKE) $$part; then said=passed; else said=FAILED; bad=1; fi; \
	  echo "== $$part $$said in $$SECONDS s"; \
	done; [ -z "$${bad:-}" ]; }; \
	(run check unit) || failed=1; \
	(run node cluster chaos-second) >"$$lane" 2>&1 & other=$$!; \
	(run chaos-first) || failed=1; \
	wait $$other || failed=1; \
	cat "$$lane"; \
	if [ -n "$$failed" ]; then echo "make test: FAILED; see the lines that start with ==" >&2; exit 1; fi

check: $(READY) ## Lint, format, types, floors, and the guest programs' own tests.
	@failed=; try() { "$$@" || failed=1; }; \
	try $(BIN)/ruff check .; \
	try $(BIN)/ruff format --check .; \
	try $(BIN)/mypy; \
	try $(BIN)/lint-imports; \
	for crate in $(CRATES); do try cargo test --offline --quiet --manifest-path $$crate; done; \
	[ -z "$$failed" ]

unit node cluster: $(READY) ## Tests of one kind.
	@$(PYTEST) tests/$@ $($@_OPTIONS) || { code=$$?; [ $$code = 5 ] && echo "tests/$@: no tests yet"; }

# In two halves, so that both lanes of `make test` take as long.
SECOND := $(foreach name,sleep_qemu snapshot_damage power_cut,tests/chaos/test_$(name).py)

chaos: chaos-first chaos-second ## Tests of faults.

chaos-first: $(READY)
	@$(PYTEST) tests/chaos $(SECOND:%=--ignore=%)

chaos-second: $(READY)
	@$(PYTEST) $(SECOND)

bench: setup ## Measure; prints one table, writes bench.json.
	@$(PYTEST) tests/scale -s

fmt: $(READY) ## Format and fix what can be fixed.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove what was made in this tree (the cache of built things stays).
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
	rm -rf controller/guest/init/target controller/host/logkeeper/target
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): | .venv/bin/pip
	@echo "installing Torpor and its packages into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f .venv/.ready-*; touch $@

# pip comes last into a new environment: where it is, the environment is whole
.venv/bin/pip:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "torpor: Python 3.11 or newer is needed, python3 is $$(python3 -V 2>&1); install it" >&2; exit 1; }
	@if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	    echo "torpor: Python's venv is missing; as root: apt-get install python3-venv" >&2; exit 1; fi; \
	  echo "installing python3-venv"; \
	  export DEBIAN_FRONTEND=noninteractive LC_ALL=C; \
	  install() { apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=600 python3-venv; }; \
	  install >/dev/null 2>&1 || { apt-get update -qq; install >/dev/null; }; \
	fi
	@python3 -m venv --clear .venv
