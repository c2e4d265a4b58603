# Needs only python3 (3.10 or newer, with venv) and make. Everything is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help audit test lint docs format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

audit: $(VENV)/run.stamp ## train the bundled network on digits, audit it, write audit.html and audit.json
	@$(BIN)/theodolite audit --html audit.html --json audit.json

test: $(VENV)/dev.stamp ## run the tests
	@$(BIN)/python -m pytest -n auto

lint: $(VENV)/dev.stamp ## check style, types and the layers of the package
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo

docs: $(VENV)/docs.stamp ## build the documentation, with warnings as errors and without a network
	@$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo docs/_build/html/index.html

format: $(VENV)/dev.stamp ## put the sources into the style that lint checks
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean: ## remove .venv, the caches, the reports and the built documentation
	rm -rf $(VENV) docs/_build docs/generated .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist audit.html audit.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp for what users need, one for the tools for tests and lint on top, one for sphinx, so that the first audit waits for no tool.
$(VENV)/run.stamp: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (about a minute, longer when torch has to be downloaded) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "Adding the tools for tests and lint to $(VENV) ..."
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/run.stamp
	@echo "Adding the tools for the documentation to $(VENV) ..."
	@$(PIP) -e '.[docs]'
	@touch $@
