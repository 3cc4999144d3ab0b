# `make run` serves the bundled model and `make test` checks everything; both set up what is missing first.

PYTHON ?= python3
VENV ?= .venv
# On Linux a plain install of torch from PyPI is a CUDA build of several GB. A machine without such a card is better
# off with the CPU build: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

LOCK := requirements/dev.txt
STAMP := $(VENV)/.set-up
BIN := $(VENV)/bin
# Two test workers of one thread each: more threads than cores slow every step several times over.
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: setup run test test-full lint bench lock clean

setup: $(STAMP)

# Made again when the lock changes; a set-up that broke off leaves no stamp and so starts over.
$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) $(shell grep '^torch==' $(LOCK)))
	$(BIN)/python -m pip install --quiet --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: setup
	@$(BIN)/fourfold serve

test: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)

test-full: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m "slow or not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the code does on this machine: training steps of the smallest preset, then decoding with the bundled model.
bench: setup
	$(BIN)/fourfold train debug --out build/bench --json
	$(BIN)/fourfold generate nano --prompt "Once upon a time" --max-tokens 200 --json

# Resolves pyproject's ranges afresh into the lock, without local builds' suffixes ("+cpu").
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet hatchling $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) ".[dev,datasets,gguf,tokenizers-v4]"
	{ sed '/^[^#]/,$$d' $(LOCK); build/lock/bin/python -m pip freeze --exclude fourfold | sed 's/+[a-z0-9.]*$$//'; } > build/dev.txt
	mv build/dev.txt $(LOCK)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
