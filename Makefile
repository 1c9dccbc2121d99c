# `make install`, `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-slow test-browser lint types protos clean

help:
	@echo "make install    every extra, into $(VENV)"
	@echo "make demo       train, start a cloud, classify real images across the boundary"
	@echo "make test       lint, types and every test but the slow ones"
	@echo "make test-slow  the slow tests, those in a browser included"
	@echo "make test-browser  pages in a headless Chromium, which is installed where there is none"
	@echo "make protos     generate delta/v1 from proto/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,baselines,bench,attacks,report,scale,dev,browser]'
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

test-slow: $(STAMP) test-browser
	$(BIN)/pytest -m slow --timeout 3600 --numprocesses auto --dist loadfile

test-browser: $(STAMP)
	@browser=$$(scripts/find_browser.sh $(BIN)/python) || exit 1; echo "browser: $$browser"; \
		CHROME="$$browser" $(BIN)/pytest -m browser

protos: $(STAMP)
	PYTHON=$(BIN)/python scripts/gen_protos.sh

clean:
	rm -rf $(VENV) runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
