# Two commands for a new machine: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 4

.PHONY: help hours pages screens demo test system check format lint types install slow chaos chaos-group scale fuzz recipes memory trackers bench kernels gpu lock clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@sh tests/system.sh $(PYTHON)
	@echo 'installing the tested versions into $(VENV): a minute or more, and silent'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,local,dev]'
	@touch $@

install: $(STAMP)  ## make .venv with the tested versions

demo: $(STAMP)  ## the main job on a spot machine that this computer plays: rent, train, be evicted, resume
	$(BIN)/python examples/quickstart/prepare.py
	QFT_HOME=$(CURDIR)/.demo $(BIN)/qft run examples/quickstart/run.yaml
	QFT_HOME=$(CURDIR)/.demo $(BIN)/qft ls --all
	@echo
	@echo 'the demo has a home of its own, and qft is not on your PATH; for what `next:` names, type first:'
	@echo '  export QFT_HOME="$(CURDIR)/.demo" PATH="$(abspath $(BIN)):$$PATH"'

system:  # before anything is installed or run: a program that is missing is told at once
	@sh tests/system.sh $(PYTHON) tests

test: system $(STAMP)  ## install what they need and run all tests, four files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder -m 'not slow and not chaos'

format: $(STAMP)  ## rewrite the code in the house format
	$(BIN)/ruff format .

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy . .ci/again.py

slow: system $(STAMP)  ## the proofs that take minutes; needs Debian's chromium
	$(BIN)/python -m pytest -m slow

chaos: system $(STAMP)  ## a hundred kills over real trainings, twenty of qft on Azure; count and digests
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/python tests/chaos.py
	$(BIN)/python -m pytest -m chaos tests/test_azure_chaos.py

chaos-group: system $(STAMP)  ## fifty kills of trainings by one to three ranks, compared bit by bit: 40 min
	$(BIN)/python tests/chaos_group $(CHAOS_ARGS)

fuzz: $(STAMP)  ## 10,000 odd status files, helper answers, manifests and values of run.yaml
	QFT_FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest --timeout 3600 tests/test_fuzz_*.py

recipes: $(STAMP)  ## every published experiment on a small model, each through one eviction
	$(BIN)/python examples/walk.py

hours: $(STAMP)  ## how far estimated times are from published ones; writes docs/hours.md, the recipes
	PYTHONPATH=.:tests $(BIN)/python -m support.hours_tables --write

scale: $(STAMP)  ## what several cards exchange, and what that costs; writes the tables of docs/scale.md
	PYTHONPATH=.:tests $(BIN)/python -m support.scale_tables --write

memory: $(STAMP)  ## how far the memory formula is from published peaks, also with each left out
	$(BIN)/python tests/memory.py

TRACKERS := .venv-trackers
$(TRACKERS)/.installed: pyproject.toml constraints-trackers.txt
	$(PYTHON) -m venv $(TRACKERS)
	$(TRACKERS)/bin/python -m pip install --quiet --upgrade 'pip>=24'
	$(TRACKERS)/bin/python -m pip install --quiet --constraint constraints-trackers.txt \
	  --editable '.[trackio,wandb,mlflow]'
	@touch $@

trackers: $(TRACKERS)/.installed  ## send a run with two evictions to real trackers, count what arrives
	PYTHONPATH=.:tests $(TRACKERS)/bin/python tests/trackers.py

BENCH := .venv-bench
$(BENCH)/.installed: constraints-bench.txt
	@echo 'installing the tools that qft is compared with into $(BENCH): minutes, and silent'
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --upgrade 'pip>=24'
	$(BENCH)/bin/python -m pip install --quiet --constraint constraints-bench.txt torch
	$(BENCH)/bin/python -m pip install --quiet --constraint constraints-bench.txt $(PEERS)
	@touch $@

PEERS := transformers peft bitsandbytes accelerate trl datasets dstack skypilot
bench: $(STAMP) $(BENCH)/.installed  ## speed beside other tools, on an idle machine: 45 min; BENCH_ARGS=--quick
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/python tests/bench $(BENCH_ARGS)

TRITON_VERSIONS := 3.6.0 3.7.1
TRITON := .triton
$(TRITON)/%/.installed: $(STAMP)
	@echo 'installing Triton $* into $(@D): 180 MB, and silent'
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) triton==$*
	@touch $@

kernels: $(TRITON_VERSIONS:%=$(TRITON)/%/.installed)  ## Triton kernels without a card: interpreted, and compiled for every card
	@for version in $(TRITON_VERSIONS); do \
	  PYTHONPATH=$(TRITON)/$$version $(BIN)/python tests/triton_kernels || exit 1; done

HAS_TORCH := import importlib.util as u, sys; \
  sys.exit(u.find_spec("torch") is None or sys.version_info < (3, 11))

gpu:  ## the proof for a CUDA card, by PYTHON if that has torch; without a card, what can be checked
	@if $(PYTHON) -c '$(HAS_TORCH)' 2>/dev/null; then $(PYTHON) tests/gpu; \
	  else $(MAKE) install && $(BIN)/python tests/gpu; fi

pages: system $(STAMP)  ## the report and the live page in headless Chromium, wide and narrow
	$(BIN)/python -m pytest -m slow tests/test_page_browser.py tests/test_screenshot.py tests/test_live_page.py

screens: $(STAMP)  ## print the screens of docs/plan.md anew, as `qft plan` shows them now
	QFT_WRITE_SCREENS=1 $(BIN)/python -m pytest -q tests/test_plan_screens.py

lock: $(STAMP)  ## resolve the machine's Python environments anew, with hashes; needs uv
	$(BIN)/python -m remote.setup.lock_requirements

check: system lint types test  ## format, lint, types and tests, as CI does

clean:  ## remove what the targets made
	rm -rf $(VENV) $(TRACKERS) $(BENCH) $(TRITON) .demo build dist
