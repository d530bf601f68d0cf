# Two commands do everything on a fresh machine with Python 3.11+: make demo, make test.
PYTHON ?= python3
# Pins hold for what builds the package too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all lint types docs clean

demo: .venv/demo
	.venv/bin/polyvec demo --folder .demo

test: .venv/dev
	.venv/bin/python -m pytest -m "not slow"

test-all: .venv/dev
	.venv/bin/python -m pytest

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/dev
	.venv/bin/mypy

# The generated parts of README.md and docs/.
docs: .venv/dev
	.venv/bin/python docs/generate.py

clean:
	rm -rf .venv .demo

# torch first and alone, so that nothing else decides which build of it is taken.
.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing torch and polyvec into .venv (some minutes the first time)"
	$(PIP) torch==2.13.0
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(PIP) -e '.[offline]'
	touch $@

.venv/dev: .venv/demo
	$(PIP) -e '.[dev]'
	touch $@
