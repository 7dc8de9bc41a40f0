# Two commands from a bare clone with python3.11 and pip:
#   make demo    the main job
#   make test    the tests
# Both make the environment first, in .venv, from constraints.txt.

PYTHON ?= python3.11
VENV   ?= .venv
BIN     = $(VENV)/bin
# Tests at a time.
WORKERS ?= 2
STAMP   = $(VENV)/.installed

.PHONY: demo test test-slow check docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/fanin demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -n $(WORKERS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) fanin-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
