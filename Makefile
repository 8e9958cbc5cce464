# bayesgmm: `make demo` and `make test` are all that is needed; both set up .venv first.

BIN     := .venv/bin
PY      := $(BIN)/python
WORKERS ?= 2
SEED    ?= 1
ARGS    ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test validate studies bench lint format types notebooks ci constraints clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# The stamp holds the folder that .venv was made for.  A checkout that was moved or copied, or
# whose Python has gone, is set up again.
ifneq ($(shell $(PY) -E -c 'print(open(".venv/.stamp").read().strip())' 2>/dev/null),$(CURDIR))
.PHONY: .venv/.stamp
endif

.venv/.stamp: pyproject.toml constraints.txt scripts/setup.sh
	@sh scripts/setup.sh

setup: .venv/.stamp  ## make .venv with everything in it (any other target does so when needed)
	@:

demo: .venv/.stamp  ## compare EM and NUTS on Old Faithful; the report goes to build/demo
	$(BIN)/bayesgmm demo -o build/demo --seed $(SEED) $(ARGS)

test: .venv/.stamp  ## run the tests (WORKERS=2, ARGS="-k name")
	$(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

validate: .venv/.stamp  ## run the long tests that `make test` leaves out
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m slow $(ARGS)

studies: .venv/.stamp  ## simulate how often intervals, tests and posteriors are right, search for all optima: hours; writes docs/
	$(PY) -m validation.coverage --workers $(WORKERS) --out docs/coverage.md
	$(PY) -m validation.missing --workers $(WORKERS) --out docs/missing.md
	$(PY) -m validation.lrt --workers $(WORKERS) --out docs/lrt.md
	$(PY) -m validation.optima --workers $(WORKERS) --out docs/optima.md
	$(PY) -m validation.sbc --workers $(WORKERS) --out docs/sbc.md

# Peers are installed here and nowhere else.
.venv/.bench: .venv/.stamp
	$(PY) -m uv pip install --quiet --python $(PY) -c constraints.txt --group bench || \
		$(PY) -m pip install --quiet -c constraints.txt --group bench
	@touch $@

bench: .venv/.bench  ## measure beside peers, on a quiet machine; writes docs/benchmarks.md (ARGS=--quick)
	$(PY) -m benchmarks $(ARGS)

lint: .venv/.stamp  ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: .venv/.stamp  ## put style and formatting right
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: .venv/.stamp  ## check types
	$(PY) -m mypy

notebooks: .venv/.stamp  ## execute the notebooks
	sh scripts/notebooks.sh

ci:  ## all of the above checks, with the time each takes
	.ci/run

# For maintainers: the newest releases that go together, for every platform and Python 3.12 on.
constraints: .venv/.stamp  ## renew constraints.txt
	$(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.12 \
		--all-extras --group dev --group bench --no-header --no-annotate pyproject.toml -o constraints.txt

clean:  ## remove what was built and cached
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find bayesgmm tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv as well
	rm -rf .venv
