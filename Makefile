# Two commands matter: `make demo` and `make test`. Both set up what they need in .venv, below this folder.
# Everything else: `make help`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPREAD := --numprocesses 3 --dist loadfile --no-loadscope-reorder
# Killed processes leave broken measurements, and millions of steps are slow to measure.
WITHOUT_COVERAGE := tests/chaos tests/simulation
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test simulate drain chaos attack pooler bench format lint types coverage lock clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(VENV)/.runtime  ## run the main job on this machine, with a Dynamics that fails
	$(BIN)/dynamics-sync demo

test: $(VENV)/.dev  ## run the whole suite
	$(BIN)/python -m pytest $(SPREAD) $(TESTS)

simulate: $(VENV)/.dev  ## let a million histories with faults happen (SEEDS=…); show one (SEED=…); find bugs (BUGS=1)
	@PYTHONPATH=tests $(BIN)/python -m simulation $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FIRST),--first $(FIRST)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(BUGS),--bugs)

drain: $(VENV)/.dev  ## drain 200,000 records against Dynamics' limits in simulated time (RECORDS=… WORKERS=…)
	@PYTHONPATH=tests $(BIN)/python -m simulation.drain

chaos: $(VENV)/.dev  ## kill, stop, cut off and crash all parts for ten minutes (DURATION=… WORKERS=… RECORDS=… SEED=…)
	@PYTHONPATH=tests $(BIN)/python -m chaos

attack: $(VENV)/.dev  ## attack a database as every role, and print what each reached (SERVER=pg15, pg17 or pg18)
	@PYTHONPATH=tests $(BIN)/python -m security

pooler: $(VENV)/.dev  ## run the tests of the engine behind PgBouncer in transaction mode
	$(BIN)/python -m pytest $(SPREAD) --pooler tests/integration

bench: $(VENV)/.dev  ## measure, beside peers and the physical limit (ONLY=single,bulk ROUNDS=… QUICK=1)
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(QUICK),--quick)

format: $(VENV)/.dev  ## format the code
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

lint: $(VENV)/.dev  ## check style, formatting and the layers' import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev  ## check types, strictly
	$(BIN)/mypy

coverage: $(VENV)/.dev  ## run the suite and hold core, breaker and service to 95 % of branches
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(SPREAD) $(WITHOUT_COVERAGE:%=--ignore=%) $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include='src/dynamics_sync/core/*,src/dynamics_sync/sync/breaker.py,src/dynamics_sync/sync/service.py' --fail-under=95
	$(BIN)/python -m pytest $(SPREAD) $(WITHOUT_COVERAGE)

LOCK = uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-header \
  --no-annotate --no-emit-index-url --no-emit-find-links

lock: $(VENV)/.python  ## write requirements/*.txt and benchmarks/peers.txt anew
	$(PIP) install uv
	cd requirements && for set in runtime dev; do \
	  ../$(BIN)/$(LOCK) --extra embedded --group ../pyproject.toml:$$set ../pyproject.toml \
	    --output-file $$set.txt || exit 1; \
	done
	$(BIN)/$(LOCK) --no-strip-extras benchmarks/peers.in --output-file benchmarks/peers.txt

clean:  ## remove what the other targets made
	rm -rf $(VENV) .dynamics-sync .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; $(PYTHON) is older. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements/runtime.txt pyproject.toml
	@echo "Installing into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	@echo "Installing the tools for development ..."
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
