# Two commands: `make demo` runs the main job, `make test` passes the tests. Both set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.ready
	$(BIN)/cctmn demo -o demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo

# pip of Python 3.11 knows no dependency groups, so it goes first
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group test --editable .
	touch $@

$(VENV)/.lint: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group lint
	touch $@
