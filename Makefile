# Two commands do everything: `make search` and `make test`. Both create .venv if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SPACE ?= search_spaces/cache_vs_knowledge.yaml
OUT ?= results/$(basename $(notdir $(SPACE)))

.DEFAULT_GOAL := help
.PHONY: help search test check lint types contracts tests venv clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Variables: PYTHON=$(PYTHON) VENV=$(VENV) SPACE=$(SPACE) OUT=$(OUT)'

search: $(VENV)/.installed  ## run the search of SPACE and write its report to OUT
	$(BIN)/doge-lab search $(SPACE) --out $(OUT)

test: lint types contracts tests  ## everything that CI runs: the four targets below

check: test

lint: $(VENV)/.installed-dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy
	$(BIN)/mypy

contracts: $(VENV)/.installed-dev  ## import-linter: which module may import which
	$(BIN)/lint-imports

tests: $(VENV)/.installed-dev  ## pytest, two processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

venv: $(VENV)/.installed-dev  ## create VENV with the lab and its development tools

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "doge_lab needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:  ## remove VENV and the caches of the tools
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
