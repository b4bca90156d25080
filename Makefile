# On a machine with only Python (3.11 or newer) and make: `make demo`, `make test`. The first call makes .venv and
# installs into it; later calls install again only after pyproject.toml or the choice of backend has changed.
#
#   make demo        the bundled model transcribes the bundled recordings, and reads a sentence aloud into demo.wav
#   make test        lint, then all tests but a few long ones, then the notebooks
#   make slow        the long ones: ten hours of sound, 20 000 tokens, minutes of noise, all of the demo
#   make notebooks   run every notebook and compare what it says with what is stored in it
#   make fuzz        many hurt files for every reader: N=100000, goes on where it was stopped
#   make soak        long runs with the memory watched: an hour or two on two cores, goes on where it was stopped
#   make bench       speed against PyTorch, as ratios (installs PyTorch)
#   make lab         JupyterLab on notebooks/
#   make lint        ruff check, ruff format, types
#   make package     build a wheel, check it, install it into an environment of its own and run it there
#   make venv        only the environment
#   make clean       remove it, and what was built
#
# Choices: PYTHON=python3.12, BACKEND=cpu|cuda|cuda12|metal, TESTS="tests/audio -k chunk", JOBS=4

SHELL := /bin/sh
PY := .venv/bin/python
TESTS ?=
JOBS ?= 2

# Metal on a Mac; CUDA where NVIDIA's driver answers (580 is the first that speaks CUDA 13); else the CPU.
BACKEND ?= $(shell \
  if [ "$$(uname -s)" = Darwin ]; then echo metal; \
  elif nvidia-smi >/dev/null 2>&1; then \
    driver=$$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1 | cut -d. -f1); \
    if [ "$${driver:-0}" -ge 580 ] 2>/dev/null; then echo cuda; else echo cuda12; fi; \
  else echo cpu; fi)
EXTRA := $(filter-out metal,$(BACKEND))
comma := ,
space := $(subst x,,x x)
STAMP := .venv/.stepaudio-$(BACKEND)

# JOBS processes, each with one file or notebook at a time, whose fixtures and kernel it keeps. Most of the work is
# Python, which has one thread; matrix products get one as well, or the processes would wait for each other's.
SPREAD := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile

# Tests start Python hundreds of times, and what it compiled is kept: else each start takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

# $(call install,EXTRA): the package itself, editable, with the backend's extra and this one.
install = umask 022 && $(PY) -m pip install --quiet --disable-pip-version-check --editable \
  ".$(if $(strip $(EXTRA) $(1)),[$(subst $(space),$(comma),$(strip $(EXTRA) $(1)))])"

.PHONY: venv demo test slow notebooks lab lint fuzz soak bench package clean
.DELETE_ON_ERROR:

venv: $(STAMP)

demo: $(STAMP)
	@$(PY) -m stepaudio demo

test: lint $(STAMP)-notebook
	@$(if $(strip $(TESTS)),$(PY) -m pytest,$(SPREAD)) -m "not slow" $(TESTS)
	@$(if $(strip $(TESTS)),,$(MAKE) --no-print-directory notebooks)

slow: $(STAMP)-test $(STAMP)-notebook
	@$(PY) -m pytest -m slow

# What is stored in the notebooks was computed on a CPU, in float32; another backend may write other words, so there
# they only have to run.
notebooks: $(STAMP)-test $(STAMP)-notebook
	@$(SPREAD) --nbval$(if $(filter cpu,$(BACKEND)),,-lax) --nbval-current-env --nbval-cell-timeout=300 \
	  --nbval-sanitize-with tests/nb_sanitize.cfg notebooks/

lint: $(STAMP)-test
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m basedpyright --level error

lab: $(STAMP)-notebook
	@$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

N ?= 100000
fuzz: $(STAMP)-test
	@cd tests && PYTHONPATH=..:. ../$(PY) -m fuzz.run $(N)

soak: $(STAMP)
	@cd tests && PYTHONPATH=..:. ../$(PY) -m soak

bench: $(STAMP)-parity
	@$(PY) -m stepaudio bench

# The wheel must bring all that it needs: it is run away from the sources, in an environment that never saw them.
package: $(STAMP)
	@rm -rf dist build/fresh
	@$(PY) -m pip install --quiet --disable-pip-version-check build twine
	@$(PY) -m build --quiet
	@$(PY) -m twine check --strict dist/*
	@$(PY) -m venv build/fresh
	@build/fresh/bin/python -m pip install --quiet --disable-pip-version-check \
	  "$$(ls dist/*.whl)$(if $(EXTRA),[$(EXTRA)])"
	@cd build/fresh && bin/stepaudio demo

$(STAMP): pyproject.toml Makefile
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "make: stepaudio needs Python 3.11 or newer, and found $$(python3 -V 2>/dev/null || echo none)." \
	       "Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "make: $$python is no Python 3.11 or newer" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "make: $$python cannot make virtual environments: its modules venv and ensurepip are missing." \
	       "On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	umask 022; \
	echo "making .venv with $$("$$python" -V), backend $(BACKEND) (the first time takes a few minutes)"; \
	"$$python" -m venv --clear .venv
	@$(call install,)
	@touch $@

$(STAMP)-%: $(STAMP)
	@echo "installing what '$*' needs"
	@$(call install,$*)
	@touch $@

clean:
	rm -rf .venv build dist
