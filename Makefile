# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
BASE   := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check fuzz test-more test-zoo test-yardstick test-pulp4 clean
demo: $(BASE)
	$(PY) examples/01_hello.py

# One thread for each worker: two workers with two spinning threads each would wait for one another.
test: $(DEV)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

check: $(DEV)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_walls.py tests/test_wheel.py tests/test_names.py

fuzz: $(DEV)
	FUZZ=$${FUZZ:-50000} $(PY) -m pytest -n 2 --timeout 0 tests/codegen/test_fuzz_graphs.py tests/codegen/test_evaluate_cpp.py

# Random problems against brute force, ten times as many as in make test.
test-more: $(DEV)
	MORE=$${MORE:-10} OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --timeout 0 tests/solver

test-zoo: $(DEV)
	ZOO=full OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -q --timeout 0 tests/surface/test_zoo.py

test-yardstick: $(DEV)
	YARDSTICK=full OMP_NUM_THREADS=1 $(PY) -m pytest -q --timeout 0 tests/solver/test_yardstick.py

test-pulp4:
	@command -v python3.12 >/dev/null || { echo "skipped: PuLP 4 needs Python 3.12"; exit 0; }; \
	python3.12 -m venv .venv-pulp4 && .venv-pulp4/bin/pip -q install numpy networkx 'pulp>=4,<5' highspy platformdirs \
	  filelock rich pytest pytest-timeout hypothesis jsonschema && \
	PYTHONPATH=src .venv-pulp4/bin/python -m pytest -q tests/solver/test_brute_force.py tests/solver/test_shell.py \
	  tests/solver/test_honest.py

$(BASE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "adaflex needs Python 3.11 or newer, found $$($(PYTHON) --version); set PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "this Python has no venv module; install it (Debian: apt-get install python3-venv)"; exit 2; }
	@$(PYTHON) -c 'import shutil, sys; sys.exit(shutil.disk_usage(".").free < 3 << 30)' || \
	  { echo "less than 3 GiB of disk are free here; make room first"; exit 2; }
	@command -v $${ADAFLEX_CXX:-g++} >/dev/null || \
	  echo "note: no g++ found; AdaFlex will run, slowly, without generated kernels (Debian: apt-get install g++)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[torch,demo]'
	touch $@

$(DEV): $(BASE)
	$(PIP) -e '.[torch,demo,dev,cuda]'
	touch $@

clean:
	rm -rf $(VENV) out dist build
