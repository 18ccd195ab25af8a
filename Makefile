# Two commands: `make demo` runs the main job, `make test` passes the tests. Both set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch's wheels for Linux bring some 4 GB of CUDA libraries. On a machine without a GPU, give the
# address of PyTorch's index of CPU wheels here; docs/install.md says where to find it. Its wheels have
# other hashes than the pinned ones, so they are not checked.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet
# The pins, with the hashes of all files that may be installed; `make lock` writes them.
PINS := constraints.txt
TORCH_PINS := constraints-torch.txt
DEV_PINS := constraints-dev.txt

.PHONY: demo test quick docs lint lock model rerun clean

demo: $(VENV)/.package
	$(BIN)/cctmn demo -o demo

# The pages of docs/ as a site in build/site; a broken link fails
docs: $(VENV)/.ready
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# The whole suite, in two processes; a file of tests stays in one of them
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.ready
	$(PYTEST)

# The tests that need neither Ray, a browser nor other servers, in under two minutes
quick: $(VENV)/.ready
	$(PYTEST) -m "not slow and not ray and not browser and not cluster and not servers"

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Resolve the pins anew, keeping the present versions where they still fit; --upgrade in UV takes newer
# ones. What PyTorch brings stands apart, and so do the tools of the developers.
UV := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header
ALWAYS := ; python_full_version < '3.15' and sys_platform == 'linux'
OF_TORCH := ^(torch|torchvision|triton|nvidia-|cuda-)
lock: $(VENV)/.ready
	mkdir -p build
	cat $(PINS) $(TORCH_PINS) > build/package.txt
	$(UV) --python-version 3.11.5 pyproject.toml --extra cluster --group build -o build/package.txt
	cat $(DEV_PINS) > build/dev.txt
	sed -n 's/^\([a-zA-Z][^ ]*\).*/\1/p' build/package.txt > build/pins.txt
	$(UV) --python-version 3.11.5 -c build/pins.txt --group dev -o build/dev.txt
	sed -i "s/ $(ALWAYS)//" build/package.txt build/dev.txt
	awk '/^[^ ]/ {torch = /$(OF_TORCH)/} !torch' build/package.txt > $(PINS)
	awk '/^[^ ]/ {torch = /$(OF_TORCH)/} torch' build/package.txt > $(TORCH_PINS)
	cp build/dev.txt $(DEV_PINS)

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

$(VENV)/.package: pyproject.toml $(PINS) $(TORCH_PINS)
	@echo "Installing cctmn and its packages into $(VENV): a few minutes and some 6 GB of disk"
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) $(shell sed -n 's/^\(torch[a-z]*==[^ ]*\).*/\1/p' $(TORCH_PINS)))
	$(PIP) --require-hashes -r $(PINS) $(if $(TORCH_INDEX),,-r $(TORCH_PINS))
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.ready: $(VENV)/.package $(DEV_PINS)
	@echo "Installing the tools of the developers into $(VENV)"
	$(PIP) --require-hashes -r $(DEV_PINS)
	touch $@
