# `make demo` and `make test` do all the set-up themselves; everything lives in .venv.
PYTHON ?= python3
PY := .venv/bin/python
STEPS ?= 500
RUN ?= runs/demo
CORES := $(shell getconf _NPROCESSORS_ONLN)

.DELETE_ON_ERROR:
.PHONY: demo test coverage lint types check lock clean

# Reinstalled when the dependencies change; the stamp is written last, so a broken install is tried again.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("stml-semi needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: .venv/installed
	.venv/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	  --num_cpu_threads_per_process $(CORES) \
	  cli.py semi --recipe recipes/kanji.yaml --max-steps $(STEPS) --output-dir $(RUN) --overwrite

test: .venv/installed
	$(PY) -m pytest -n 2 --dist worksteal

coverage: .venv/installed
	$(PY) -m pytest -n 2 --dist worksteal -q --cov --cov-report=term:skip-covered

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/codespell

types: .venv/installed
	.venv/bin/pyright

check: lint types test

# Writes requirements-dev.txt: the newest versions that fit pyproject.toml, for everyone who develops.
lock: .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	(sed -n '/^#/p' requirements-dev.txt; .venv/bin/uv pip compile pyproject.toml --extra dev --universal \
	  --python-version 3.11 --no-emit-index-url --no-header --no-annotate --quiet) > requirements-dev.new
	mv requirements-dev.new requirements-dev.txt

clean:
	rm -rf .venv runs dist build
