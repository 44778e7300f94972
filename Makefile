# Everything a newcomer types. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CACHE ?= $(HOME)/.cache/kvasir
# The CPU build of this version is enough to develop with; users with GPUs install what pyproject asks for.
TORCH_VERSION ?= 2.13.0

SOURCES := operator runtime tests e2e

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z0-9_-]+:.*## / {printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Kvasir needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(CACHE)
	echo "torch==$(TORCH_VERSION)" > $(CACHE)/constraints.txt
	$(BIN)/pip install --quiet --progress-bar off "torch==$(TORCH_VERSION)"
	$(BIN)/pip install --quiet --progress-bar off --constraint $(CACHE)/constraints.txt --editable '.[dev]'
	touch $@

.PHONY: setup
setup: $(BIN)/.installed ## Make the virtual environment with everything for development
