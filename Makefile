# One command a task; `make` alone lists them. Needs Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
PYTEST_ARGS ?=

BIN := .venv/bin
CREATED := .venv/.created
READY := .venv/.ready
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: help setup demo test fuzz check docs format clean bench-drift
.DEFAULT_GOAL := help

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything that demo, test and check need

demo: $(READY)  ## run the quickstart notebook from top to bottom and say what came out
	@$(BIN)/python tools/demo.py

test: $(READY)  ## run the tests, two at a time
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

fuzz: $(READY)  ## a million malformed inputs for the codecs, 200,000 malformed requests for a server (some minutes)
	@for codec in grpc grpc-plain mlflow-csv mlflow-json mlflow-plain tfserving tfserving-plain v2 v2-binary v2-plain; do \
	  echo "$$codec"; $(BIN)/python tests/fuzz/codecs.py $$codec 150000 $$(date +%s) || exit 1; done
	@$(BIN)/python tests/fuzz/flood.py 200000

bench-drift: $(READY)  ## drift beside Evidently and NannyML, in environments of their own (half an hour)
	@$(BIN)/python benchmarks/profile_counters.py && counters=0 || counters=1; \
	  $(BIN)/python benchmarks/drift.py && exit $$counters

check: $(READY)  ## style, types and the order of the layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(READY)  ## build the documentation into .site; a broken link or reference fails it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "built: .site/index.html"

format: $(READY)  ## write the code in the house style
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove what the commands above have made
	rm -rf .venv .demo .executed .site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(CREATED):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("mlopsnb needs Python 3.11 to 3.13; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % v)'
	@$(PYTHON) -m venv .venv
	@touch $@

$(READY): $(CREATED) pyproject.toml constraints.txt
	@echo "installing into .venv (some minutes the first time; log: .venv/install.log)"
	@$(INSTALL) --constraint constraints.txt --editable '.[dev]' >.venv/install.log 2>&1 \
	  || { cat .venv/install.log; echo "the installation failed, see above"; exit 1; }
	@touch $@
