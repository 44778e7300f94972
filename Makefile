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

.PHONY: lint
lint: setup ## Check style, types and layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: setup ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test
test: setup ## Run the fast tests: no cluster, no network, under three minutes
	$(BIN)/pytest -m "not slow" tests

.PHONY: test-slow
test-slow: setup ## Run the tests that take longer
	$(BIN)/pytest -m slow --durations=15 tests

.PHONY: crds
crds: setup ## Render crds/ from the typed API
	$(BIN)/python -m kvasir_operator.api.crd

.PHONY: model
model: setup ## Train the committed test model and its adapters again (minutes)
	cd tests/models && ../../$(BIN)/python -m train_tiny_llama --out .

.PHONY: images
images: setup ## Build the container images of operator and runtime
	$(BIN)/python -m e2e.images build

.PHONY: cluster
cluster: setup ## Make a Kubernetes cluster on this machine (or use $$KVASIR_E2E_USE_CONTEXT)
	$(BIN)/python -m e2e.cluster up

.PHONY: cluster-down
cluster-down: setup ## End the cluster that `make cluster` made
	$(BIN)/python -m e2e.cluster down

.PHONY: demo
demo: setup ## From nothing to tokens: cluster, operator, an InferenceService, a streamed answer
	$(BIN)/python -m e2e.demo

.PHONY: e2e
e2e: setup ## Run the tests on a real cluster (half an hour; minutes more when Kubernetes and images must be built)
	$(BIN)/pytest -m e2e --timeout=900 --durations=25 e2e

.PHONY: bench
bench: setup ## Measure the runtime on this machine with the committed model
	$(BIN)/kvasir-runtime bench throughput --model tests/models/tiny-llama --input-len 256 --output-len 64 --num-prompts 16

.PHONY: bench-operator
bench-operator: setup ## Measure the operator with 100, 1000 and 3000 services on a cluster of its own (BENCH_ARGS='--help')
	$(BIN)/python -m e2e.bench_operator $(BENCH_ARGS)

.PHONY: bench-peers
bench-peers: setup ## Measure Kvasir beside vLLM, transformers and llama.cpp (installs them once; PEERS_ARGS='--help')
	$(BIN)/python -m benchmarks.peers $(PEERS_ARGS)

.PHONY: clean
clean: ## End the cluster and remove what was built here (caches under ~/.cache/kvasir stay)
	if [ -x $(BIN)/python ]; then $(BIN)/python -m e2e.cluster down; fi
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
