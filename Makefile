# The first Python on the path that is new enough; `make PYTHON=...` takes another.
PYTHON ?= $(shell for python in python3.11 python3; do $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo $$python && break; done)
PIP = .venv/bin/python -m pip -qq --disable-pip-version-check install -c constraints.txt
INSTALLED = .venv/.installed

.PHONY: help setup train bench test lint tensorboard clean
.DEFAULT_GOAL = help

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(INSTALLED)  ## Make .venv and install, if anything has changed

train: ARGS ?= experiment=ptuning_lstm
train: $(INSTALLED)  ## Train a soft prompt; ARGS="experiment=prefix_tuning optim.lr=0.01" for another run
	.venv/bin/python -m ptlit.train $(ARGS)

bench: $(INSTALLED)  ## Measure ptlit against PEFT, ten minutes; ARGS="benchmark=large_vocabulary" for others
	.venv/bin/python -m ptlit.benchmark $(ARGS)

test: $(INSTALLED)  ## Run the whole test suite
	.venv/bin/python -m pytest -q --numprocesses=auto --dist=loadfile --no-loadscope-reorder

lint: $(INSTALLED)  ## Check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

tensorboard: $(INSTALLED)  ## Show every run under outputs/
	.venv/bin/tensorboard --logdir outputs

clean:  ## Remove caches and build products; .venv and outputs/ stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache && find ptlit tests -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: a few minutes the first time ..."
	$(PIP) --upgrade pip
	$(PIP) --editable '.[test,dev]'
	$(PIP) --target .venv/quantized --upgrade --no-deps bitsandbytes torchao # aside: they slow every import
	@touch $@
