# Covey's commands. From a machine with make and Python >= 3.11; nothing asks for input, and everything
# is written below .venv/ and build/. `make help` lists them.

VENV ?= .venv
export VENV
PY := $(VENV)/bin/python
B ?= 2400
# What make test leaves to make test-slow.
FAST := not slow and not interop
SOURCES := daemon p2p memory federated tests tools benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow explore lint fmt bench bench-docs sim hunt fuzz shape coverage lock wheel clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 14

setup: ## make the virtual environment (the others do it themselves)
	@tools/venv.sh

demo: setup ## three daemons on this machine show what Covey does (KEEP=1 keeps their folders)
	@$(VENV)/bin/covey demo $(if $(KEEP),--keep)

test: setup ## everything that is fast: LAYER=unit or T=FILE::TEST narrows it
	@$(PY) -m pytest $(if $(T),$(T),-m "$(FAST)" $(if $(LAYER),tests/$(LAYER),tests))

test-slow: setup ## slow and interop tests; stops after B=2400 seconds and lists what it did not reach
	@$(PY) -m pytest -m "slow or interop" --budget-s $(B) $(if $(LAYER),tests/$(LAYER),tests)

explore: setup ## property tests with fresh examples, by hand; a find becomes an @example
	@COVEY_TEST_PROFILE=explore $(PY) -m pytest $(if $(T),$(T),tests/property)

lint: setup ## ruff, mypy, flake8-async, import-linter
	@$(PY) -m tools.lint

fmt: setup ## format the code
	@$(VENV)/bin/ruff check --quiet --fix-only . && $(VENV)/bin/ruff format .

bench: setup ## benchmarks beside their yardsticks: NAME=mesh, QUICK=1
	@set -e; for name in $(or $(NAME),main memory mesh replication jobs rounds); do \
		$(PY) -m benchmarks $$name $(if $(QUICK),--quick); \
	done

bench-docs: setup ## the same, written to docs/benchmarks.md
	@$(PY) -m benchmarks.docs $(if $(QUICK),--quick)

sim: setup ## replication under faults and hostile members: SEEDS=200 runs, or SEED=n again
	@$(PY) -m tests.sim.run $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200))

hunt: setup ## repeat one test under other hash seeds, task orders and load: T=..., N=200
	@$(PY) -m tools.hunt "$(T)" $(or $(N),200)

fuzz: setup ## mutate inputs of one decoder (or all): TARGET=..., S=60 seconds, SEED=0
	@$(PY) -m tests.helpers.fuzz $(if $(TARGET),--target $(TARGET)) --seconds $(or $(S),60) --seed $(or $(SEED),0)

shape: setup ## sizes, comments, docstrings and tests of each package, for the reviewer
	@$(PY) -m tools.shape

coverage: setup ## branch coverage of the fast tests
	@$(PY) -m coverage run -m pytest -q -m "$(FAST)" $(if $(LAYER),tests/$(LAYER),tests)
	@$(PY) -m coverage report --skip-covered --sort=cover

lock: setup ## resolve pyproject.toml anew into requirements/dev.lock
	@tools/lock.sh

wheel: setup ## build/dist/covey-*.whl
	@rm -rf build/dist && $(PY) -m build --no-isolation --outdir build/dist .

clean: ## remove everything that the commands made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +
