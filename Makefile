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
COMPILE := uv pip compile --quiet --no-header --no-annotate pyproject.toml requirements/small-model.in --extra ray --extra dev

.PHONY: setup demo test test-real test-unit test-fast test-numerics coverage browser fuzz torture soak audit lint format bench docs requirements clean

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

# More processes than cores: a third of the time of these tests is waiting.
PYTEST := $(BIN)/pytest --numprocesses=3 --dist=worksteal

# All at once, since much of each is waiting or one thread: two thirds of the time of one after the other.
test: setup
	@$(MAKE) --no-print-directory --jobs=3 --keep-going lint test-real test-unit

# One thread that is bound to no core: bound threads of two engines wait for each other, and take three times as long.
# What they print comes whole, after them.
test-real: setup
	@OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/pytest tests/real > $(VENV)/test-real.log 2>&1; \
	status=$$?; cat $(VENV)/test-real.log; exit $$status

test-unit: setup
	$(PYTEST) -m "not real"

test-fast: setup
	$(PYTEST) -m "not real and not slow"

# Measuring takes half as long again as the tests do.
coverage: setup
	$(PYTEST) -m "not real" --cov

# Floating-point results differ between instruction sets and thread counts; a tolerance must hold under all of them.
test-numerics: setup
	@for isa in default avx2 native; do for threads in 1 2; do \
	  echo "test-numerics: ATEN_CPU_CAPABILITY=$$isa OMP_NUM_THREADS=$$threads"; \
	  if [ $$isa = native ]; then unset ATEN_CPU_CAPABILITY; else export ATEN_CPU_CAPABILITY=$$isa; fi; \
	  OMP_NUM_THREADS=$$threads $(BIN)/pytest tests/stats tests/evaluation tests/training -m "numeric and not real" || exit 1; \
	done; done

# Hostile inputs to every reader of files, options and addresses; the seed is printed. INPUTS=… SEED=… choose others.
# Before them, a thousand examples of each property, where `make test` has 40.
fuzz: setup
	$(PYTEST) -m "hypothesis and not real" --hypothesis-profile=many
	CAI_RECORD=$(CURDIR)/docs/reliability.json $(BIN)/python -m tests.faults.fuzz $(or $(INPUTS),100000) $(SEED)
	$(BIN)/python -m tests.faults.reliability

# Runs killed at random moments, damaged caches and faulty servers, at full count. KILLS=… CORRUPTIONS=… choose others.
torture: setup
	CAI_RECORD=$(CURDIR)/docs/reliability.json CAI_TORTURE=$(or $(KILLS),200) CORRUPTIONS=$(or $(CORRUPTIONS),900) $(BIN)/pytest tests/faults -m "not real" -s
	$(BIN)/python -m tests.faults.reliability

# An hour of runs on a scripted engine: memory, open files and threads must not grow. MINUTES=… chooses another time.
soak: setup
	$(BIN)/python -m tests.faults.soak $(or $(MINUTES),60)

# Known vulnerabilities (of OSV, over the network; skipped aloud without one) and licences of the locked requirements.
audit: setup
	$(BIN)/python requirements/audit.py requirements/cpu.txt requirements/gpu.txt

# For the tests of the HTML pages, which are skipped without a browser.
browser: setup
	@command -v chromium chromium-browser google-chrome > /dev/null \
	  || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } > /dev/null 2>&1 \
	  || $(BIN)/playwright install --with-deps chromium

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
	@for script in benchmarks/loop.py benchmarks/training.py benchmarks/soft_labels.py benchmarks/claims.py benchmarks/edit.py benchmarks/compare.py benchmarks/watch.py benchmarks/scheduler.py benchmarks/replay.py benchmarks/endpoints.py; do $(BIN)/python $$script; done

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # with --quiet, it would count no warnings

# After a change of dependencies. The GPU set is resolved without local wheels, which are CPU builds.
requirements: setup
	$(RUN) $(COMPILE) --python-version 3.11 --extra cpu --excludes requirements/excludes-cpu.txt $(TORCH) --upgrade --output-file requirements/cpu.txt
	$(RUN) env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(COMPILE) --python-version 3.11 --extra gpu --excludes requirements/excludes-gpu.txt --upgrade --output-file requirements/gpu.txt

clean:
	rm -rf $(VENV) site
