# Everything one does with a checkout. Needs make, Python 3.11 or later and pip; `make help` lists the targets.
#
# All of it lives in .venv inside the checkout, made by the first target that needs it. Nothing is asked of the
# machine's own Python but `venv` and `pip --python`: so it may be externally managed (PEP 668) or lack ensurepip.

# The first of these that is 3.11 or later; or name one: make test PYTHON=/path/to/python3
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
# More words for the command behind a target: make test ARGS="-k fork -x"
ARGS ?=
# How the tests are shared out: a fifth of their time they wait, so two cores have work for three. One after another, for a
# debugger: make test PARALLEL=
PARALLEL ?= -n 3 --dist worksteal

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
SET_UP := .venv/.set-up
DEV_SET_UP := .venv/.dev-set-up
BENCH_PY := .venv-bench/bin/python
BENCH_SET_UP := .venv-bench/.set-up
MUTATION_PY := .venv-mutation/bin/python
MUTATION_SET_UP := .venv-mutation/.set-up

# The caller's virtual environment and import path must not reach ours, nor an option that sends pip elsewhere. All
# other PIP_* variables (index, proxy, certificates, cache, ...) count as usual.
unexport PYTHONPATH PYTHONHOME PYTHONOPTIMIZE PYTHONSAFEPATH VIRTUAL_ENV
# Nor one that keeps nothing compiled: each worker would rewrite the assertions of all tests, in five seconds.
unexport PYTHONDONTWRITEBYTECODE
unexport PIP_PYTHON PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER := 0

# Is .venv complete, made in this very folder, and its Python still there? An interrupted set-up, an upgraded Python or
# a moved checkout is not, and is made anew. INSTALLER is the last file but one that an installation of pip writes;
# its script names the folder; 25.1 is the first pip that knows dependency groups.
SOUND := $(PY) -I -c 'import importlib.metadata as m, os, sys; \
	pip = m.distribution("pip"); \
	sys.exit(not (sys.version_info >= (3, 11) and pip.read_text("INSTALLER") and pip.read_text("RECORD") \
	and tuple(map(int, pip.version.split(".")[:2])) >= (25, 1) \
	and os.path.abspath(".venv") + os.sep in open(".venv/bin/pip").read()))' 2>/dev/null

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(SET_UP)  ## see it work, in two acts; installs what runs need, and nothing for tests
	@.venv/bin/idemreg demo $(ARGS)

.PHONY: test
test: $(DEV_SET_UP)  ## run the tests; ARGS="..." goes to pytest
	@$(PY) -m pytest $(PARALLEL) $(ARGS)

.PHONY: lint
lint: $(DEV_SET_UP)  ## check style and format (ruff)
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check

.PHONY: types
types: $(DEV_SET_UP)  ## check the types (mypy, strict)
	@$(PY) -m mypy

.PHONY: floors
floors: $(DEV_SET_UP)  ## check that a file imports only from lower floors (import-linter)
	@.venv/bin/lint-imports --no-logo

.PHONY: check
check: lint types floors test  ## all four: lint, types, floors, test

.PHONY: coverage
coverage: $(DEV_SET_UP)  ## run the tests and list the branches that none of them takes
	@$(PY) -m pytest --cov $(PARALLEL) $(ARGS)

.PHONY: torture
torture: $(DEV_SET_UP)  ## the long trials of every promise, in an hour; ARGS="--only NAME --seed N"
	@$(PY) -m tests.torture $(ARGS)

.PHONY: torture-ci
torture-ci: $(DEV_SET_UP)  ## a tenth of them
	@$(PY) -m tests.torture --share 10 $(ARGS)

.PHONY: mutants
mutants: $(DEV_SET_UP)  ## break each barrier on purpose, in ten minutes; writes the table of docs/reliability.md
	@$(PY) -m tests.mutants --save $(ARGS)

.PHONY: mutation
mutation: $(MUTATION_SET_UP)  ## mutation testing (mutmut) of what decides and what makes ids and checksums
	@$(MUTATION_PY) -m tests.mutation $(ARGS)

.PHONY: bench
bench: $(DEV_SET_UP)  ## measure this machine, in two minutes
	@$(PY) -m bench $(ARGS)
	@echo
	@$(PY) -m bench.imports

# Needs redis-server, strace and a C compiler as well, and says so where they are missing; it installs nothing outside
# of .venv-bench.
.PHONY: bench-full
bench-full: $(BENCH_SET_UP)  ## all figures, every contender, in an hour; writes bench/results/ and the README's table
	@$(BENCH_PY) -m bench --scale full --save $(ARGS)

.PHONY: dist
dist: $(DEV_SET_UP)  ## build wheel and sdist into dist/
	@rm -rf dist
	@$(PY) -m build --outdir dist .

.PHONY: clean
clean:  ## remove all that these targets made, .venv included
	@rm -rf .venv .venv-bench .venv-mutation mutants build dist idemreg.egg-info .coverage .coverage.* htmlcov
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

# Stamps: a second run does nothing. The one for development stands on the other, so that two jobs of `make -j` never
# install at once. A stamp is written last: what was interrupted before it is done again.

ifneq ($(shell $(SOUND) && echo sound),sound)
.PHONY: $(SET_UP)
endif

$(SET_UP): pyproject.toml
	@set -e; \
	if ! $(SOUND); then \
		for python in $(PYTHON); do \
			$$python -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
			python=; \
		done; \
		test -n "$$python" || { \
			echo "idemreg needs Python 3.11 or later, and none of these is: $(PYTHON)" >&2; \
			echo "Name one: make $(firstword $(MAKECMDGOALS) help) PYTHON=/path/to/python3" >&2; \
			exit 1; \
		}; \
		echo "making .venv with $$($$python --version)"; \
		rm -rf .venv; \
		$$python -m venv --without-pip .venv; \
		if $$python -m pip --python $(PY) --version >/dev/null 2>&1; then \
			$$python -m pip --python $(PY) --disable-pip-version-check -q install 'pip>=25.1'; \
		elif $(PY) -m ensurepip >/dev/null 2>&1; then \
			$(PIP) install --upgrade 'pip>=25.1'; \
		else \
			echo "$$python has neither pip (22.3 or later) nor ensurepip. Install pip for it, for example:" >&2; \
			echo "    apt install python3-pip" >&2; \
			exit 1; \
		fi; \
	fi
	@echo "installing idemreg into .venv"
	@$(PIP) install -e '.[schedule]'
	@touch $@

$(DEV_SET_UP): pyproject.toml $(SET_UP)
	@echo "installing the tools for tests and checks into .venv"
	@$(PIP) install --group dev
	@touch $@

# The contenders bring many packages, none of which the tests may come to stand on: an environment of their own. Made
# anew whenever .venv was.
$(BENCH_SET_UP): pyproject.toml $(SET_UP)
	@echo "installing the contenders into .venv-bench"
	@rm -rf .venv-bench
	@$(PY) -m venv --without-pip .venv-bench
	@$(PIP) --python $(BENCH_PY) install -e . --group bench
	@touch $@

# mutmut brings a user interface and more, which the tests may not come to stand on either.
$(MUTATION_SET_UP): pyproject.toml $(SET_UP)
	@echo "installing mutmut into .venv-mutation"
	@rm -rf .venv-mutation
	@$(PY) -m venv --without-pip .venv-mutation
	@$(PIP) --python $(MUTATION_PY) install -e . --group mutation
	@touch $@
