# Two commands: `make demo` runs the main job, `make test` passes the tests. Both set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint model rerun clean

demo: $(VENV)/.ready
	$(BIN)/cctmn demo -o demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The model that ships, made again: about 45 minutes on one core
model: $(VENV)/.ready
	$(BIN)/cctmn phantom lesions -o build/lesions --count 400 --seed 20
	$(BIN)/cctmn phantom lesions -o build/lesions-valid --count 40 --seed 21
	$(BIN)/cctmn phantom slices -o build/slices --count 600 --seed 22
	$(BIN)/cctmn phantom slices -o build/slices-valid --count 90 --seed 23
	$(BIN)/cctmn train detector --preset demo --data build/lesions --valid build/lesions-valid -o build/detector
	$(BIN)/cctmn train classifier --preset demo --data build/slices --valid build/slices-valid -m build/detector/model -o build/classifier
	$(BIN)/cctmn phantom slices -o build/slices-unseen --count 90 --seed 5
	$(BIN)/cctmn phantom lesions -o build/lesions-unseen --count 40 --seed 6
	$(BIN)/cctmn models evaluate build/classifier/model --slices build/slices-unseen --record "unseen phantoms, slices"
	$(BIN)/cctmn models evaluate build/classifier/model --lesions build/lesions-unseen --record "unseen phantoms, lesions"

# The paper's evaluation at full count on synthetic pictures, in build/rerun: SPLIT and EXCLUDE are
# COVIDx-CT's training split and the author's list of 3000 slices
rerun: $(VENV)/.ready
	$(BIN)/python -m tests.rerun $(SPLIT) $(if $(EXCLUDE),--exclude $(EXCLUDE)) -o build/rerun

clean:
	rm -rf $(VENV) demo build

# pip of Python 3.11 knows no dependency groups, so it goes first
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group test --editable .
	touch $@

$(VENV)/.lint: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group lint
	touch $@
