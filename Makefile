# `make` alone lists what can be made. Everything happens inside .venv; nothing else is touched.
PYTHON ?= python3
# More options for JupyterLab, for example LAB_ARGS="--no-browser --port 9999".
LAB_ARGS ?=
# More options for pip, for example PIP_ARGS="--no-cache-dir".
PIP_ARGS ?=
# More options for pytest, for example PYTEST_ARGS="-k gradients".
PYTEST_ARGS ?=

# More options for the fuzzer, for example FUZZ_ARGS="--minutes 60 --only files".
FUZZ_ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check install -qq --constraint constraints.txt $(PIP_ARGS)
LAB := $(RUN) jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.news_url=None \
	--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
	$(if $(filter 0,$(shell id -u)),--allow-root)
# Widget state is left out: one table of itables alone would add 750 kB to a notebook.
NBCONVERT := $(RUN) nbconvert --to notebook --execute --output-dir build/notebooks \
	--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False \
	--ClearMetadataPreprocessor.enabled=True --ClearMetadataPreprocessor.clear_cell_metadata=False \
	--ClearMetadataPreprocessor.preserve_nb_metadata_mask="{'kernelspec', 'language_info'}"
# A cell may take long on a busy machine: the timeout only ends what hangs.
NBVAL := -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout 1200
# No vector instructions that another processor may lack, and other roundings than with them.
PORTABLE := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 \
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help lab test portable fuzz bench notebooks tiny-model clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lab: $(VENV)/.lab-installed ## open JupyterLab on the first notebook
	@$(LAB) --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_ARGS)

test: $(VENV)/.dev-installed ## lint, unit, notebook and browser tests
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pytest $(NBVAL) tests toolkit notebooks $(PYTEST_ARGS)

portable: $(VENV)/.dev-installed ## the notebooks with the plainest arithmetic of any processor
	$(PORTABLE) $(RUN) pytest $(NBVAL) tests/test_notebooks.py notebooks $(PYTEST_ARGS)

fuzz: $(VENV)/.dev-installed ## try malformed input for ten minutes, or FUZZ_ARGS="--minutes 60"
	$(VENV)/bin/python tests/fuzz.py $(FUZZ_ARGS)

bench: $(VENV)/.bench-installed ## measure speed and memory side by side (about half an hour)
	$(VENV)/bin/python benchmarks/run.py

notebooks: $(VENV)/.dev-installed ## run every notebook again and save it, all or none
	@rm -rf build/notebooks
	@$(NBCONVERT) $(NOTEBOOKS)
	@cp build/notebooks/*.ipynb notebooks/

tiny-model: $(VENV)/.dev-installed ## rebuild the shipped model and pairs (about half an hour)
	$(VENV)/bin/python data/build_pairs.py
	$(VENV)/bin/python data/build_model.py
	$(VENV)/bin/python data/build_on_policy.py

clean: ## remove caches and build products, but not .venv
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) \
		-type d -print0 | xargs -0 rm -rf

$(VENV)/.lab-installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(PIP) --editable '.[lab]'
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV) with the test tools; the first time takes some minutes."
	@$(PIP) --editable '.[lab,dev]'
	@touch $@

$(VENV)/.bench-installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV) with what the benchmarks compare with."
	@$(PIP) --editable '.[lab,dev,bench]'
	@touch $@

$(VENV)/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "This project needs Python 3.11 or newer; $$($(PYTHON) --version) was found. Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu, install the package python3-venv first." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
