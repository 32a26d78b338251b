# `make demo` and `make test` set up everything they need in .venv; a second call sets nothing up again.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

.PHONY: setup demo test test-long lint clean-demo

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or later is needed; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -r requirements-dev.txt -c constraints.txt
	@touch $@

test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not long and not gpu"

test-long: $(READY)
	$(PY) -m pytest -m long

lint: $(READY)
	$(PY) -m ruff check .
