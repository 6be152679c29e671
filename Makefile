# The whole vocabulary. tools/setup makes .venv with what each target needs.
PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup lint test bench bench-metadata bench-ca bench-network demo samples clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## install what is missing (apt, with root) and make .venv
	tools/setup

lint: setup  ## ruff and mypy, strict
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:  ## set up and run the whole test suite, end-to-end tests included
	tools/test

demo:  ## the whole suite on this machine, two instances, their curl and cloud-init
	tools/demo

bench: bench-metadata bench-ca bench-network  ## every benchmark; table and build/bench.json

bench-metadata: setup  ## a boot storm beside a trivial application under the same servers
	$(PYTHON) tools/bench metadata

bench-ca: setup  ## certificates per CPU second beside a bare loop and cfssl
	$(PYTHON) tools/bench ca

bench-network: setup  ## a host's ports beside one ip -batch of the same kernel objects
	$(PYTHON) tools/bench network

samples: setup  ## write etc/mooring/*.sample from the options that the code knows
	PYTHON=$(CURDIR)/$(PYTHON) tools/generate-samples

clean:  ## remove what was built; nothing of yours
	rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
