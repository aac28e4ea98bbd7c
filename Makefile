# `make demo` runs the main job, `make test` runs the checks and tests. Both set up what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
PACKAGES := wanlora_tui daemon engine presets tests benchmarks

.PHONY: help setup demo test thorough fast busy lint collected docs snapshots bench golden learn torture soak resolve lowest newest clean

help:
	@echo "make setup | demo | test | thorough | fast | busy | lint | docs | snapshots | bench | golden | learn | torture | soak | resolve | lowest | newest | clean"

setup: $(STAMP)
	@$(BIN)/python -m presets.machine.torch_build --installed

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "wanlora needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "This Python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@# that of Python 3.11 takes half a minute of a core more for the rest than this and the newest one
	$(PIP) --upgrade pip
	$(PIP) --editable '.[dev]' $$($(BIN)/python -m presets.machine.torch_build)
	@wanted=$$($(BIN)/python -m presets.machine.torch_build --kernels); test -z "$$wanted" || $(PIP) $$wanted || echo "wanlora trains without them, slower on this card: see wanlora doctor" >&2
	@touch $(STAMP)

demo: setup
	$(BIN)/wanlora demo

# Where the tests are the first to install the packages, pip does not compile all of their 13,000 files first, which takes
# it most of a minute on one core: tests import about a third of them, and Python compiles those as it imports them.
test: PIP += --no-compile
test: setup
	@$(MAKE) --no-print-directory -j 2 lint collected
	$(BIN)/python -m pytest -q --cache-clear -m "not thorough" -n auto --maxprocesses 4 --dist loadfile || $(BIN)/python -m tests.again $$?

# Also the further cases of kinds that `make test` shows by one or two.
thorough: setup
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

fast: setup
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/python -m pytest -q -m unit -n auto --maxprocesses 4 --dist loadfile

busy: setup
	$(BIN)/python -m tests.busy --loops 6

lint: setup
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy

# The tests' modules are compiled here once, on the core that mypy leaves, and not by each worker of a fresh clone. What
# cannot be collected is told by the tests' own run.
collected: setup
	@$(BIN)/python -m pytest -q --collect-only -p no:cacheprovider >/dev/null 2>&1 || true

docs: setup
	$(BIN)/python -m presets.rules.docs > docs/job-file.md
	$(BIN)/python -m daemon.protocol_page > docs/protocol.md
	$(BIN)/python -m tests.house

snapshots: setup
	$(BIN)/python -m pytest -q tests/wanlora_tui/screens/test_snapshots_*.py --snapshot-update

bench: setup
	$(BIN)/python -m benchmarks.cold_start

golden: setup
	$(BIN)/python -m tests.golden

learn: setup
	$(BIN)/python -m tests.learn

torture: setup
	$(BIN)/python -m pytest -q tests/daemon/queue/test_state_machine.py --hypothesis-profile=torture
	$(BIN)/python -m tests.torture --minutes 10
	$(BIN)/python -m tests.hostile

soak: setup
	$(BIN)/python -m tests.soak --minutes 10

resolve: setup
	$(PIP) 'pip>=26.3,<27'
	$(BIN)/python -m tests.versions resolve

lowest newest: setup
	$(PYTHON) -m venv --clear .venv-$@
	$(BIN)/python -m tests.versions $@ > .venv-$@/constraints.txt
	.venv-$@/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-$@/constraints.txt --editable '.[dev]'
	.venv-$@/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest .mypy_cache .ruff_cache .pytest_cache .cache demo
