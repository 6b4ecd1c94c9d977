# Everything below works on a machine with only python3 (>= 3.11), a C/C++ compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
CLIENT_VENV := $(VENV)/clients
ARGS ?=
# Bytecode is kept whatever the surroundings say: each process of the tests would compile everything anew.
export PYTHONDONTWRITEBYTECODE :=
export CXXFLAGS += -include $(CURDIR)/adapters/llama_cpp/compiling.h
UNIT := tests/adapters tests/gateway tests/test_architecture.py tests/test_docs.py

.PHONY: setup rebuild serve test check unit bench simulate money lock train-demo clean

serve: $(VENV)/.ready  ## start the gateway with the demo model, or: make serve ARGS="model.gguf --port 9000"
	$(BIN)/gateway serve $(ARGS)

setup: $(VENV)/.ready  ## install everything into .venv (builds llama.cpp once: a few minutes)

test: check $(CLIENT_VENV)/.ready  ## everything: format, lint, types, unit, faults, end to end
	$(RUN) -m pytest -q -n auto --dist worksteal -m slow $(UNIT)
	$(RUN) -m pytest tests $(UNIT:%=--ignore=%)

check: $(VENV)/.ready  ## the inner loop: format, lint, types, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(RUN) -m pytest -q -n auto --dist worksteal -m "not slow" $(UNIT)

bench: $(VENV)/.ready  ## measure against llama-server built from the same llama.cpp; prints ratios
	$(RUN) -m tests.bench $(ARGS)

train-demo: $(VENV)/.ready  ## train the demo model anew (needs PyTorch, takes about 40 minutes)
	$(RUN) -m adapters.llama_cpp.demo.train $(ARGS)

SEED ?= 1
HISTORIES ?= 100000

simulate: $(VENV)/.ready  ## run random histories of limits and ledger: make simulate SEED=1 HISTORIES=1000000
	$(RUN) -m tests.simulate --seed $(SEED) --histories $(HISTORIES)

money: $(VENV)/.ready  ## races, kills, failing disks and stores, for minutes: make money ARGS="race-sixteen kills --scale 0.1"
	$(RUN) -m tests.faults.money $(ARGS)

lock: $(VENV)/.ready  ## renew the pinned versions
	$(BIN)/uv pip compile pyproject.toml --group dev --group clients $(LOCK_OPTIONS) -o requirements.lock
	$(BIN)/uv pip compile tests/e2e/clients/requirements.in $(LOCK_OPTIONS) -o tests/e2e/clients/requirements.lock

LOCK_OPTIONS := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links

INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check
# llama.cpp is compiled for this CPU, and pip keeps what came of it: that may be for another one, or from before a fix.
TRIAL := $(RUN) -m adapters.llama_cpp.trial

$(VENV)/.ready: requirements.lock pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	$(TRIAL) >/dev/null || { echo "what pip has kept of llama.cpp does not compute on this CPU"; $(MAKE) rebuild; }
	touch $@

rebuild:  ## compile llama.cpp anew, for this CPU
	@echo "compiling llama.cpp anew, which takes a few minutes"
	$(RUN) -m pip uninstall --quiet --yes llama-cpp-python
	-$(RUN) -m pip cache remove --quiet llama_cpp_python
	$(INSTALL) --require-hashes -r requirements.lock
	$(TRIAL)

$(CLIENT_VENV)/.ready: tests/e2e/clients/requirements.lock
	test -x $(CLIENT_VENV)/bin/python || $(PYTHON) -m venv $(CLIENT_VENV)
	$(CLIENT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
