# Two commands: `make demo` runs the main job, `make test` passes the tests. Both set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch's wheels for Linux bring some 4 GB of CUDA libraries. On a machine without a GPU, give the
# address of PyTorch's index of CPU wheels here; docs/install.md says where to find it.
TORCH_INDEX ?=
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt

.PHONY: demo test quick docs lint model rerun clean

demo: $(VENV)/.package
	$(BIN)/cctmn demo -o demo

# The pages of docs/ as a site in build/site; a broken link fails
docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# The whole suite, in two processes; a file of tests stays in one of them
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.ready
	$(PYTEST)

# The tests that need neither Ray nor a browser, in under two minutes
quick: $(VENV)/.ready
	$(PYTEST) -m "not slow and not ray and not browser and not cluster"

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The model that ships, made again: about 45 minutes on one core
model: $(VENV)/.ready
	$(BIN)/cctmn phantom lesions -o build/lesions --count 400 --seed 20 --overwrite
	$(BIN)/cctmn phantom lesions -o build/lesions-valid --count 40 --seed 21 --overwrite
	$(BIN)/cctmn phantom slices -o build/slices --count 600 --seed 22 --overwrite
	$(BIN)/cctmn phantom slices -o build/slices-valid --count 90 --seed 23 --overwrite
	$(BIN)/cctmn train detector --preset demo --data build/lesions --valid build/lesions-valid -o build/detector
	$(BIN)/cctmn train classifier --preset demo --data build/slices --valid build/slices-valid -m build/detector/model -o build/classifier
	$(BIN)/cctmn phantom slices -o build/slices-unseen --count 90 --seed 5 --overwrite
	$(BIN)/cctmn phantom lesions -o build/lesions-unseen --count 40 --seed 6 --overwrite
	$(BIN)/cctmn models evaluate build/classifier/model --slices build/slices-unseen --record "unseen phantoms, slices"
	$(BIN)/cctmn models evaluate build/classifier/model --lesions build/lesions-unseen --record "unseen phantoms, lesions"

# The paper's evaluation at full count on synthetic pictures, in build/rerun: SPLIT and EXCLUDE are
# COVIDx-CT's training split and the author's list of 3000 slices
rerun: $(VENV)/.ready
	$(BIN)/python -m tests.rerun $(SPLIT) $(if $(EXCLUDE),--exclude $(EXCLUDE)) -o build/rerun

clean:
	rm -rf $(VENV) demo build

$(VENV)/.package: pyproject.toml constraints.txt
	@echo "Installing cctmn and its packages into $(VENV): a few minutes and some 6 GB of disk"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --quiet pip
	$(if $(TORCH_INDEX),$(INSTALL) --index-url $(TORCH_INDEX) torch torchvision)
	$(INSTALL) --editable .
	touch $@

# pip's own version of Python 3.11 has no dependency groups, so .package updates pip first
$(VENV)/.ready: $(VENV)/.package
	@echo "Installing the test tools into $(VENV)"
	$(INSTALL) --quiet --group test
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(INSTALL) --quiet --group docs
	touch $@

$(VENV)/.lint: $(VENV)/.ready
	$(INSTALL) --quiet --group lint
	touch $@
