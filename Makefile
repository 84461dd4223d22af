# `make demo` runs the main job on the built-in data; `make test` runs the tests. Both set themselves up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint check docs install clean

demo: install
	$(BIN)/segtailor train toy-teacher --run.exists resume
	$(BIN)/segtailor distill toy-kt --run.exists resume

# mypy alone takes a minute of one core
test: .venv/.complete
	$(MAKE) --no-print-directory --jobs 2 lint check

check: .venv/.complete
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: install
	$(BIN)/python -m segtailor.methods.describe .
	$(BIN)/python benchmarks/results_table.py > docs/results.md
	$(BIN)/python benchmarks/page.py

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,pretrained]'
	touch $@

# what the tests need beside: the libraries of the extras
.venv/.complete: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,pretrained,hf,smp,export,pack]'
	touch $@

clean:
	rm -rf .venv runs
