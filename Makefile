# make demo    segment a photograph with the model that comes with the repository
# make test    check everything that CI checks
# make test-slow   check what takes long: every export format, a training on two machines
# make test-gpu    check the CUDA operators and the model on this machine's NVIDIA GPU
# make docs    build the documentation's site into output/site
#
# All make an environment of their own in .venv first, which takes minutes once. PYTHON=python3.14 chooses its Python,
# INSTALLER=pip does without uv.

PYTHON ?= python3
VENV ?= .venv
# Of pytest and of mypy. Few enough for a laptop: every test process holds PyTorch.
TEST_PROCESSES ?= 2

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
UV := $(VENV)/bin/uv
# uv installs what pip does, in a third of the time. It knows nothing of pip's settings: where they name another index
# than PyPI, pip installs, and where uv fails. Neither compiles bytecode: Python does, of the few files that it imports,
# unless it is told to keep it from every process that follows.
unexport PYTHONDONTWRITEBYTECODE
INSTALLER ?= uv
OPTIONS := --quiet --constraint constraints.txt
INSTALL := @install() { test $(INSTALLER) = uv && test -x $(UV) && \
  $(UV) pip install --python $(VENV)/bin/python $(OPTIONS) "$$@" || \
  $(PIP) install --no-compile $(OPTIONS) "$$@"; }; install
INPUTS := pyproject.toml setup.py constraints.txt tools/install_detectron2.py mask2former/ops/_build.py \
  $(wildcard mask2former/ops/csrc/*.* mask2former/ops/csrc/cuda/*)

.PHONY: help demo test test-slow test-gpu docs lint typecheck layers unit clean

help:
	@sed -n 's/^# make /make /p' Makefile

demo: $(VENV)/runtime.stamp
	$(VENV)/bin/python demo/demo.py

test: lint typecheck layers unit

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

typecheck: $(VENV)/dev.stamp
	$(VENV)/bin/mypy --num-workers $(TEST_PROCESSES)

layers: $(VENV)/dev.stamp
	$(VENV)/bin/lint-imports

# One thread a process: the processes are what runs in parallel.
unit: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n $(TEST_PROCESSES) --dist worksteal --durations 15

test-slow: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest -q -m slow --timeout 1800

# Builds first: a library that does not fit the sources would not be loaded. One process, because there is one GPU.
test-gpu: $(VENV)/dev.stamp
	$(VENV)/bin/python -m mask2former.ops.build
	$(VENV)/bin/python -m pytest -q -rs -m gpu tests/ops tests/modeling tests/engine

# Strict: a link that leads nowhere, or a page that mkdocs.yml does not name, is an error.
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "Open output/site/index.html; for the search, run $(VENV)/bin/python -m mkdocs serve"

clean:
	rm -rf $(VENV) output .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# PyTorch comes before the package, whose build uses the one that is installed.
$(VENV)/runtime.stamp: $(INPUTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 10) or sys.exit( \
	  "Python 3.10 or later is needed and this is %d.%d: say which to use, as in make PYTHON=python3.14 $(MAKECMDGOALS)" % v)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch and what Mask2Former needs into $(VENV): once, for some minutes"
	@test $(INSTALLER) = pip || $(PIP) config list | grep -E '\.(index-url|no-index)=' > /dev/null || \
	  $(PIP) install $(OPTIONS) --only-binary uv uv || echo "uv cannot be had here: pip installs, which takes longer"
	$(INSTALL) setuptools wheel torch torchvision
	$(INSTALL) --no-build-isolation --editable '.[timm,demo]'
	$(VENV)/bin/python tools/install_detectron2.py
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	@echo "Installing what the tests and checks need besides"
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@
