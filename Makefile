# Everything a fresh clone needs: `make demo` and `make test`. Both keep to .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint check slow wheel clean

demo: $(VENV)/.installed  ## install, then watch holes of a sample file being filled
	$(BIN)/dgemma-lsp demo

test: $(VENV)/.installed-test lint check  ## lint, types and all tests that take no GPU and no editor

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: $(VENV)/.installed-test
	$(BIN)/pytest

slow: $(VENV)/.installed-test  ## the tests that a bare pytest leaves out
	$(BIN)/pytest -m "slow or e2e" -rR

wheel: $(VENV)/.installed-test
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable ".[test,lint,train,ws,e2e]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) dist build
