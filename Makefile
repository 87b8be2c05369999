# make demo and make test are all a fresh machine needs: each sets up first (setup.sh, quick when nothing changed).
# The environment is setup.sh's: KAVA_VENV, else the active one, else .venv.

SHELL := bash
PYTHON = "$$(bash setup.sh --python)"
# Bytecode is kept also where the environment says otherwise (images often do): without it every process compiles the
# tests and the library again, ten seconds each time.
TEST_ENV = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=
OLDEST = .venv-oldest
JOBS = 2

.PHONY: demo test test-long test-real test-oldest gpu test-gpu lint types setup ready clean

demo: ready  ## distil the shipped checkpoint on built-in arithmetic (about five minutes on two cores)
	$(PYTHON) -m kava demo

test: ready  ## the fast suite: no network, two processes, or as many as JOBS says
	$(TEST_ENV) $(PYTHON) -m pytest -n $(JOBS) --dist loadfile

test-long: ready  ## real training runs, kill tests; PART=1/3 runs a third of them
	$(TEST_ENV) KAVA_TEST_PART=$(PART) $(PYTHON) -m pytest -m long -rs

test-real: ready  ## two pretrained models of KAVA_REAL_MODELS under the recipes' settings
	$(PYTHON) -m pytest -m real -rs tests/real

test-oldest:  ## oracles and invariants on the oldest supported transformers, in an environment of its own
	KAVA_VENV="$(OLDEST)" KAVA_LOCK=requirements-oldest.txt bash setup.sh --quick
	$(TEST_ENV) "$(OLDEST)/bin/python" -m pytest tests/oracles tests/invariants

# The packages that an image for GPUs has are taken as they are: nothing is set up, and without an environment of
# setup.sh it is python3's.
GPU_PYTHON = "$$(bash setup.sh --python 2>/dev/null || command -v python3)"
GPU_ENV = PYTHONPATH="src$${PYTHONPATH:+:$$PYTHONPATH}"

gpu:  ## the GPU kit: numbers, speed and memory on one CUDA device, in under eight minutes; ARGS="--items float32 nf4"
	$(GPU_ENV) $(GPU_PYTHON) -m kava bench gpu $(ARGS)

test-gpu:  ## the items of the kit as tests
	$(GPU_ENV) KAVA_TEST_GPU="$${CUDA_VISIBLE_DEVICES:-0}" $(GPU_PYTHON) -m pytest -m gpu -rs tests/gpu

lint: ready
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: ready
	$(PYTHON) -m mypy

setup:  ## set up or check, and report
	bash setup.sh

ready:
	@bash setup.sh --quick

clean:  ## caches and build leftovers; runs, data and environments stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests examples scripts -name __pycache__ -type d -prune -exec rm -rf {} +
