# `make demo` and `make test` set up everything they need; a second time the set-up is instant.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

# Python must keep its byte code: without it, importing vLLM takes three times as long.
export PYTHONDONTWRITEBYTECODE =
# uv finds local wheels through a variable of its own.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
# Where no folder of wheels is given, uv fetches the CPU build of torch from its own index.
TORCH := $(if $(UV_FIND_LINKS),,--torch-backend=cpu)
COMPILE := uv pip compile --quiet --no-header --no-annotate pyproject.toml requirements/small-model.in --extra dev

.PHONY: setup demo test fast-test lint format bench requirements clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml requirements/cpu.txt requirements/excludes-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit("cai needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	@cp requirements/cpu.txt $(VENV)/requirements.txt
	@# requirements/cpu.txt is for Python 3.11 on x86-64 Linux; elsewhere it is the starting point of a new resolution
	@$(BIN)/python -c 'import sys, sysconfig; sys.exit((sys.version_info[:2], sysconfig.get_platform()) != ((3, 11), "linux-x86_64"))' \
	  || $(RUN) $(COMPILE) --extra cpu --excludes requirements/excludes-cpu.txt $(TORCH) --output-file $(VENV)/requirements.txt
	$(RUN) uv pip install --quiet --python $(BIN)/python --no-deps $(TORCH) --requirements $(VENV)/requirements.txt
	$(RUN) uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo:
	@bash examples/demo.sh

# Two tests at once: with more, real models would need more memory than a small machine has.
PYTEST := $(BIN)/pytest --numprocesses=2 --dist=worksteal

test: setup lint
	$(PYTEST)

fast-test: setup
	$(PYTEST) -m "not real"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	@$(BIN)/cai models prepare > /dev/null
	@for script in benchmarks/loop.py benchmarks/training.py benchmarks/soft_labels.py benchmarks/edit.py benchmarks/compare.py benchmarks/watch.py; do $(BIN)/python $$script; done

# After a change of dependencies. The GPU set is resolved without local wheels, which are CPU builds.
requirements: setup
	$(RUN) $(COMPILE) --python-version 3.11 --extra cpu --excludes requirements/excludes-cpu.txt $(TORCH) --upgrade --output-file requirements/cpu.txt
	$(RUN) env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(COMPILE) --python-version 3.11 --extra gpu --excludes requirements/excludes-gpu.txt --upgrade --output-file requirements/gpu.txt

clean:
	rm -rf $(VENV)
