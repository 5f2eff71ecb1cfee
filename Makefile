# `make train` lets a GAN learn digits, `make test` proves that the software is right, `make help` lists the rest.
# Python 3.11 or later, its venv module and make are all it needs; set-up fills .venv once and again when its recipe changes.

PYTHON ?= python3
VENV ?= .venv
INSTALL ?= 1
TORCH_INDEX ?=
ARGS ?=
SUITE ?= all
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 8 ? 8 : n)))

ifeq ($(INSTALL),0)
PY := $(PYTHON)
READY := usable
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := $(VENV)/bin/python
READY := $(VENV)/fastgan.stamp
endif

unexport TRITON_INTERPRET
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal
SELECT := not full and
SLICE := --slice 10
PART := --slice 4

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup usable train test test-all test-gpu bench lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo "  PYTHON=python3.12  the Python that makes $(VENV)      VENV=FOLDER  another folder; a torch in it is kept"
	@echo "  INSTALL=0          use PYTHON as it is              TORCH_INDEX=URL  where a CPU-only torch is, say"
	@echo "  ARGS='...'         passed on to the command         SUITE=NAME   what make bench measures (all)"

setup: $(READY) ## make the virtual environment that the other targets work in

$(VENV)/fastgan.stamp: pyproject.toml setup.py constraints.txt tools/environment.py
	@$(PYTHON) tools/environment.py --venv '$(VENV)' --torch-index '$(TORCH_INDEX)'
	@touch $@

usable:
	@$(PYTHON) tools/environment.py --check

train: $(READY) ## train a GAN on the digits that come with the package (ARGS='--steps 500')
	$(PY) -m fastgan train gan-digits $(ARGS)

lint: $(READY) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy -p fastgan

test: lint ## every check that needs no GPU: lint, tests, and the Triton kernels under the interpreter
	$(PYTEST) -m '$(SELECT) not interpret and not gpu' $(PART) $(ARGS)
	TRITON_INTERPRET=1 $(PYTEST) -m '$(SELECT) interpret' $(SLICE) $(ARGS)

test-all: export FASTGAN_TEST_ALL := 1
test-all: SELECT :=
test-all: SLICE :=
test-all: PART :=
test-all: PYTEST += -o timeout=1500
test-all: test ## the same with the full counts

test-gpu: $(READY) ## the tests that need a GPU (INSTALL=0 PYTHON=python3: against the torch that is there)
	$(PY) -m pytest -m gpu --require-gpu $(ARGS)

bench: $(READY) ## measure what matters most in 8 minutes (SUITE=audit, ARGS='--json out.json')
	$(PY) -m fastgan.benchmarks $(SUITE) $(ARGS)

clean: ## remove build products and caches; runs/ and the virtual environment stay
	rm -rf build dist fastgan.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find fastgan kernels benchmarks tests tools -name __pycache__ -prune -exec rm -rf {} +
