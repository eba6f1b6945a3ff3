# The verbs of this project; `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/sh
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.tools/bin:$(PATH)
export PYTHONUNBUFFERED := 1
PYTHON := .venv/bin/python

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## a real cluster, a real model, gears that shift and replicas that scale (root; see README)
	@$(PYTHON) -m examples.demo

test: setup ## everything that this machine can test, with minutes per tier
	@$(PYTHON) tests/tiers.py

campaign: setup ## every campaign at full count (about three hours; `python tests/campaign.py NAME` runs one)
	@$(PYTHON) tests/campaign.py

bench: setup ## what overlap and more than two gears buy on this machine (about ten minutes, alone on it)
	@$(PYTHON) benchmarks/overlap.py
	@$(PYTHON) benchmarks/gears.py

check: setup ## style, types, layers, generated code
	ruff check .
	ruff format --check .
	mypy
	mypy --config-file tests/mypy.ini
	lint-imports
	$(PYTHON) -m pytest -q tests/contract/test_protos.py

up: setup ## start the local cluster (root)
	@$(PYTHON) localcluster/cluster.py up

down: setup ## end the local cluster and remove what it made
	@$(PYTHON) localcluster/cluster.py down

status: setup ## show the local cluster
	@$(PYTHON) localcluster/cluster.py status

images: setup ## build the images and load them into the local cluster
	@$(PYTHON) localcluster/cluster.py images

setup: .venv/.ready

.venv/.ready: pyproject.toml uv.lock */pyproject.toml
	@command -v uv >/dev/null || { echo "installing uv into .tools"; python3 -m venv .tools && .tools/bin/pip install -q "uv>=0.8,<1"; }
	@echo "installing the locked packages into .venv (PyTorch: about 5 GB on first use)"
	@uv sync --frozen --all-groups --quiet
	@touch $@

clean: ## remove the virtual environment and caches of this checkout
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help demo test campaign bench check up down status images setup clean
