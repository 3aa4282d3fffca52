# `make demo` and `make test` do their own set-up: a virtual environment in .venv, made once.
# After that first install nothing needs the network.

VENV   ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
            $(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
BIN     = $(VENV)/bin
DEMO    = batchfer-results
MODEL  ?= models/mobilenetv2.keras
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Versions and hashes that were tested; elsewhere, and for LOCKED=no, the newest that fit.
LOCKED ?= $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),yes,no)

.PHONY: help demo demo-cluster test test-all test-newest fuzz lint format lock wheel docs bench bench-stages bench-start bench-kernels bench-versions bench-engines bench-frame bench-cluster clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed ## analyze the sample clips and say where the results are
	@echo "demo: analyzing samples/clips and samples/stills into $(DEMO)"
	@$(BIN)/batchfer video samples/clips -o $(DEMO)/video
	@$(BIN)/batchfer images samples/stills -o $(DEMO)/images
	@echo
	@echo "Done. Look at the results:"
	@echo "  report           xdg-open $(DEMO)/video/index.html"
	@echo "  annotated video  xdg-open $(DEMO)/video/portrait.mp4/annotated.mp4"
	@echo "  table            column -s, -t < $(DEMO)/video/portrait.mp4/timeline.csv | less -S"
	@echo
	@echo "Now your own:      $(BIN)/batchfer video FILE.mp4"
	@echo "or, for this shell: . $(BIN)/activate, then batchfer --help"

demo-cluster: $(VENV)/.installed-dev ## the same on a cluster of Ray on this machine, one core a worker
	@$(BIN)/batchfer video samples/clips -o $(DEMO)/cluster --cluster local --slot 1
	@$(BIN)/batchfer images samples/stills -o $(DEMO)/cluster-images --cluster local --slot 1

# One process a core, each with the tests of whole files; more than four need much memory.
CORES  ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
PYTEST  = $(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile --durations 20

test: lint ## lint, type check and every quick test
	$(PYTEST) -m "not slow"

test-all: test ## the same, then the tests that take long
	$(PYTEST) -m slow

test-newest: ## `make test` with the newest releases of everything, in an environment of its own
	$(MAKE) test VENV=.venv-newest LOCKED=no

FUZZ_SECONDS ?= 90

fuzz: $(VENV)/.installed-dev ## feed broken files to every reader for a few minutes (FUZZ_SECONDS each)
	@$(PIP) atheris
	@PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_media.py $(FUZZ_SECONDS) $$(date +%j)
	@PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_models.py $(FUZZ_SECONDS) $$(date +%j)
	@PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_readers.py $(FUZZ_SECONDS)

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## format the code and sort its imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Renews both locks; `make lock UPGRADE=` keeps the versions that still fit.
UPGRADE ?= --upgrade
COMPILE  = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
             --generate-hashes --no-header --no-annotate $(UPGRADE) pyproject.toml .ci/requirements.in

lock: $(VENV)/.installed-dev ## renew the versions that demo and test install; test, then commit
	$(COMPILE) --output-file .ci/requirements.lock
	$(COMPILE) --group dev --constraint .ci/requirements.lock --output-file .ci/requirements-dev.lock

wheel: $(VENV)/.installed-dev ## build a wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

docs: $(VENV)/.installed .venv-docs/.installed ## build the documentation into site/, with a reference of the code
	@$(BIN)/python docs/reference.py docs
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "Done: site/index.html"

bench: $(VENV)/.installed-dev benchmarks/.venvs/.installed ## compare with peers, 20 minutes; writes benchmarks/README.md
	$(BIN)/python benchmarks/compare.py --model $(MODEL)

bench-stages: $(VENV)/.installed-dev ## measure each stage alone; writes benchmarks/README.md
	$(BIN)/python benchmarks/stages.py --model $(MODEL)

bench-start: $(VENV)/.installed ## what the seconds of a short command go to; writes benchmarks/README.md
	$(BIN)/python benchmarks/start.py --model $(MODEL)

bench-kernels: $(VENV)/.installed-dev ## the speed with other processors' kernels; writes benchmarks/README.md
	$(BIN)/python benchmarks/kernels.py --model $(MODEL) $(if $(BEFORE),--before $(BEFORE))

bench-cluster: $(VENV)/.installed-dev ## simulate 10,000 videos on clusters, measure what one takes; writes benchmarks/README.md
	$(BIN)/python benchmarks/cluster.py
	$(BIN)/python benchmarks/cluster_driver.py
	$(BIN)/python benchmarks/cluster_cost.py

bench-versions: $(VENV)/.installed-dev ## the speed beside that of another checkout (BEFORE=); writes benchmarks/README.md
	$(BIN)/python benchmarks/versions.py --model $(MODEL) --before $(BEFORE)

bench-engines: $(VENV)/.installed-dev ## frames per second on each engine; writes benchmarks/README.md
	$(BIN)/python benchmarks/engines.py --model $(MODEL)

bench-frame: $(VENV)/.installed-dev ## what a frame costs with the defaults, part by part; writes benchmarks/README.md
	$(BIN)/python benchmarks/frame.py --model $(MODEL)

clean: ## remove the virtual environment and everything made by the other targets
	rm -rf $(VENV) .venv-newest .venv-docs site docs/options.md docs/columns.md $(DEMO) dist build .pytest_cache .mypy_cache .ruff_cache

# What a bare Debian lacks is said once, as one apt line, before anything is downloaded.
$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then echo "batchfer needs Python 3.11 or newer (on Debian: sudo apt-get install python3)" >&2; exit 1; fi
	@missing=""; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	$(PYTHON) -c 'import ctypes; ctypes.CDLL("libGL.so.1")' 2>/dev/null || missing="$$missing libgl1"; \
	$(PYTHON) -c 'import ctypes; ctypes.CDLL("libgthread-2.0.so.0")' 2>/dev/null || missing="$$missing libglib2.0-0"; \
	if [ -n "$$missing" ] && [ "$$(uname -s)" = Linux ]; then \
	  echo "Some system packages are missing. Install them with:" >&2; \
	  echo "  sudo apt-get install -y$$missing" >&2; exit 1; fi
	@echo "set-up: making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml $(wildcard .ci/requirements.lock) | $(VENV)/.made
	@echo "set-up: installing batchfer and its dependencies (TensorFlow among them: a few minutes, once)"
ifeq ($(LOCKED),yes)
	@$(PIP) --no-deps --require-hashes --requirement .ci/requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
else
	@$(PIP) --upgrade 'pip>=25.1'
	@$(PIP) --editable .
endif
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed $(wildcard .ci/requirements-dev.lock)
	@echo "set-up: installing the development tools"
ifeq ($(LOCKED),yes)
	@$(PIP) --no-deps --require-hashes --requirement .ci/requirements-dev.lock
else
	@$(PIP) --group dev
endif
	@touch $@

.venv-docs/.installed: pyproject.toml
	@echo "set-up: installing MkDocs into .venv-docs"
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --group docs
	@touch $@

# The peers, each with the work-around that it needs today: see benchmarks/README.md.
benchmarks/.venvs/.installed: | $(VENV)/bin/python
	@echo "set-up: installing the peers below benchmarks/.venvs (torch and TensorFlow: a few minutes)"
	@rm -rf benchmarks/.venvs && mkdir -p benchmarks/.venvs
	@$(BIN)/python -c 'import sys, venv; [venv.create(f"benchmarks/.venvs/{n}", with_pip=True) for n in sys.argv[1:]]' fer facenet-pytorch
	@for peer in fer facenet-pytorch; do \
	  pip="benchmarks/.venvs/$$peer/bin/python -m pip install --quiet --disable-pip-version-check"; \
	  $$pip torch==2.13.0 && $$pip --no-deps facenet-pytorch==2.6.0 torchvision==0.28.0 || exit 1; \
	done
	@benchmarks/.venvs/facenet-pytorch/bin/python -m pip install --quiet \
	  numpy pillow requests tqdm av opencv-python-headless
	@benchmarks/.venvs/fer/bin/python -m pip install --quiet 'setuptools<81' 'moviepy<2' matplotlib \
	  opencv-contrib-python 'tensorflow>=2.20' pandas requests tqdm ffmpeg-python pillow
	@benchmarks/.venvs/fer/bin/python -m pip install --quiet --no-deps fer==25.10.3
	@touch $@
