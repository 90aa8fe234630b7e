# One command for each job. `make` shows them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
DURATION ?= 600
BIN := $(VENV)/bin
TOOLS := .tools/bin
OPA_VERSION := v1.22.2
GRPCURL_VERSION := v1.9.4
TESSERA_VERSION := v1.0.4
export PATH := $(CURDIR)/$(TOOLS):$(PATH)

.DEFAULT_GOAL := help
SCHEDULES ?= 1000
.PHONY: help install install-dev run test lint format protos policies vectors faults model soak fuzz audit sbom wheel bench flames lock clean

help: ## Show the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Make .venv with the `vigil` command

install-dev: $(VENV)/.installed-dev tools ## The same, with what tests and checks need

run: install ## Run the demonstration: every promise, shown
	@$(BIN)/vigil demo

test: install-dev ## Check everything: lint, then all tests
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest -q -n 3 --dist loadgroup --no-loadscope-reorder

lint: install-dev ## Style, types, contracts, policies, import rules, generated code
	@bash deploy/tools/lint.sh

format: install-dev ## Format Python, protos and Rego
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix -q . ; $(BIN)/buf format -w proto && opa fmt -w policies

protos: install-dev ## Generate services/vigil/api from proto/
	@bash deploy/tools/protos.sh

policies: install-dev ## Check the Rego and build the default bundle, byte for byte
	@$(BIN)/python -m vigil.policy.engine.build

vectors: install-dev ## Write the test vectors of docs/vectors/
	@$(BIN)/python docs/vectors/make_vectors.py

faults: install-dev ## Do to it whatever can happen, by people too; writes docs/reliability.md (AGAIN=1: what failed)
	@$(BIN)/python -m pytest -q -m holds --reliability $(if $(AGAIN),--again)

soak: install-dev ## Work, flood and kill it for long (MINUTES=10 PUMPS=2000 APPENDS=100000 DATABASE=sqlite)
	@GRPC_VERBOSITY=NONE $(BIN)/python -m tests.soak

fuzz: install-dev ## Give every decoder and method what nobody should send; DURATION=600 seconds
	@$(BIN)/python -m tests.fuzz --seconds $(DURATION) --record

model: install-dev ## Explore schedules of the real code (SCHEDULES=10000; MORE=1 goes on), or replay one (SEED=7)
	@$(BIN)/python -m tests.model $(if $(SEED),--seed $(SEED),--schedules $(SCHEDULES) --record $(if $(MORE),--more))

bench: install-dev ## Measure beside the floors; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks

flames: install-dev ## Draw where the time of a command goes; writes docs/flames/
	@$(BIN)/python -m tests.benchmarks --flames

audit: install-dev ## Hold the lock files against known advisories; OSV=folder asks an export instead of PyPI
	@$(BIN)/python deploy/tools/audit.py $(if $(OSV),--osv "$(OSV)")

sbom: install-dev ## Write dist/vigil.cdx.json: what Vigil is made of
	@$(BIN)/python deploy/tools/sbom.py dist/vigil.cdx.json

wheel: install-dev ## Build the wheel twice, apart, and compare byte by byte
	@$(BIN)/python deploy/tools/wheel.py dist

lock: install-dev ## Pin every dependency with its hashes
	@bash deploy/tools/lock.sh

clean: ## Remove what was installed and built
	@rm -rf $(VENV) .tools dist

.PHONY: tools
tools: $(VENV)/.installed
	@bash deploy/tools/fetch.sh $(TOOLS) $(OPA_VERSION) $(GRPCURL_VERSION) $(TESSERA_VERSION)
	@bash deploy/tools/faults.sh

$(VENV)/.installed: requirements.lock pyproject.toml
	@bash deploy/tools/venv.sh $(PYTHON) $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-dev.lock
	@touch $@
