# `make install`, `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-slow lint types protos clean

help:
	@echo "make install    every extra, into $(VENV)"
	@echo "make demo       train, start a cloud, classify real images across the boundary"
	@echo "make test       lint, types and every test but the slow ones"
	@echo "make test-slow  the slow tests"
	@echo "make protos     generate delta/v1 from proto/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,baselines,bench,attacks,scale,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/delta demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

test: lint types
	$(BIN)/pytest --numprocesses auto --dist loadfile

test-slow: $(STAMP)
	$(BIN)/pytest -m slow --timeout 3600 --numprocesses auto --dist loadfile

protos: $(STAMP)
	PYTHON=$(BIN)/python scripts/gen_protos.sh

clean:
	rm -rf $(VENV) runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
