# `make run` serves, `make test` proves. Both need Python 3.11 or newer with venv, and nothing else.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
OUT ?= runs/candidate.pth
TO ?= weights/best_model.pth

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable
REQUIREMENTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test faults check lint types train publish docs format constraints clean

help:
	@echo 'make run [HOST=127.0.0.1] [PORT=8000]   install into .venv and serve'
	@echo 'make test                               lint, format, types, import contracts, every test'
	@echo 'make faults                             the long tests of faults: many swaps, kills, hostile uploads'
	@echo 'make check                              the same with the quick unit tests alone'
	@echo 'make train DATA=dir [OUT=file] [ARGS=]  train candidate weights'
	@echo 'make publish DATA=dir [OUT=] [TO=]      put the candidate into service if it is no worse'
	@echo 'make docs                               build the guide as a site into site/'
	@echo 'make format                             format the code, mend what the linter can'
	@echo 'make constraints [TORCH=x.y.z]          pin anew what constraints.txt pins'
	@echo 'make clean                              remove .venv and caches'

run: .venv/serving
	MASKWELL_HOST=$(HOST) MASKWELL_PORT=$(PORT) exec $(BIN)/python -m app

test: .venv/test lint types
	$(BIN)/python -m pytest -m 'not docker and not long'

faults: .venv/test
	$(BIN)/python -m pytest tests/faults -m long -s

check: .venv/test lint types
	$(BIN)/python -m pytest tests/unit -m 'not docker and not slow and not long'

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/test
	$(BIN)/mypy

train: .venv/training
	@test -n '$(DATA)' || { echo 'make train DATA=dir: a folder of images with their masks' >&2; exit 2; }
	@mkdir -p '$(dir $(OUT))'
	exec $(BIN)/python -m training fit '$(DATA)' --out '$(OUT)' $(ARGS)

publish: .venv/training
	@test -n '$(DATA)' || { echo 'make publish DATA=dir: images to compare the candidate on' >&2; exit 2; }
	exec $(BIN)/python -m training publish '$(OUT)' '$(DATA)' --to '$(TO)' $(ARGS)

docs: .venv/test
	$(BIN)/mkdocs build --strict

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each of these files stands for one finished installation; what serving needs is in all three.
.venv/created: $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Maskwell needs Python 3.11 or newer: make PYTHON=/path/to/python' >&2; exit 1; }
	@echo 'Installing into .venv; PyTorch is large, so the first time takes some minutes.'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/serving: .venv/created
	$(INSTALL) .
	@touch $@

.venv/training: .venv/created
	$(INSTALL) '.[training]'
	@touch $@ .venv/serving

.venv/test: .venv/created
	$(INSTALL) '.[test]'
	@touch $@ .venv/training .venv/serving

# Everything may move but torch: a newer torch would be another few gigabytes, and is a decision of its own.
constraints: TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
constraints:
	rm -rf .venv/constraints && $(PYTHON) -m venv .venv/constraints
	echo 'torch==$(TORCH)' >.venv/constraints/torch.txt
	.venv/constraints/bin/python -m pip install --quiet --constraint .venv/constraints/torch.txt --editable '.[test]'
	.venv/constraints/bin/python -m pip freeze --all --exclude-editable >.venv/constraints/frozen.txt
	grep '^#' constraints.txt >.venv/constraints/new.txt
	grep -viE '^(pip|wheel|triton|(cuda|nvidia)-[a-z0-9-]*)==' .venv/constraints/frozen.txt \
		| sed 's/+[a-z0-9.]*$$//' | LC_ALL=C sort -f >>.venv/constraints/new.txt
	mv .venv/constraints/new.txt constraints.txt
	rm -rf .venv/constraints

clean:
	rm -rf .venv build dist site *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find app bench client model tests training -type d -name __pycache__ -prune -exec rm -rf {} +
