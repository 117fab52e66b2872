# Two commands on a fresh Linux machine with Python 3.10 to 3.12: make quickstart, make test.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-nvidia release-data check format clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
	  { echo "Python 3.10 to 3.12 is needed, $(PYTHON) is another; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "installing into $(VENV): several GB with torch and Triton, some minutes without a word"
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --progress-bar off --disable-pip-version-check -c constraints.txt -e '.[local,dev]'
	@touch $@

quickstart: $(INSTALLED)  ## build, serve and measure the tiny example model
	$(RUN)/trtllm-deploy run examples/quickstart.yaml

test: $(INSTALLED)  ## all tests, offline, with real Triton and real modelopt
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(RUN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-nvidia: $(INSTALLED)  ## TRTLLM_SOURCES=FOLDER of <release>/TensorRT-LLM trees: their own code judges ours
	@test -n "$(TRTLLM_SOURCES)" || { echo "set TRTLLM_SOURCES to a folder with <release>/TensorRT-LLM" >&2; exit 2; }
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(RUN)/pytest tests/nvidia -s

release-data: $(INSTALLED)  ## SOURCE=TREE RELEASE=NAME [BACKEND=TREE] [AS=RELEASE]: write a release's data
	$(RUN)/python -m tests.nvidia.release_data $(or $(SOURCE),-) $(or $(BACKEND),-) "$(RELEASE)" $(AS)

check: $(INSTALLED)  ## lint, format, types, generated docs
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/python docs/generate.py --check
	$(RUN)/python docs/models.py --check
	$(RUN)/python docker/dashboard.py --check

format: $(INSTALLED)  ## mend what lint and format can
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean:  ## remove the environment, the workspace and caches
	rm -rf $(VENV) workspace artifacts build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
