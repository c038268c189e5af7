# `make run` and `make test` do all the set-up: they build .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: run test test-long test-slow test-cluster lint bench parity board docs site clean

run: $(READY)
	$(BIN)/robustdd run --method mat

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

# The tests that take longest, which the checks of a submission run as well: tests/data/long.txt.
test-long: $(READY)
	$(BIN)/python -m pytest -m "long and not slow and not gpu and not cluster" -n 2 --dist loadfile --no-loadscope-reorder --durations=15

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations=15

# Ray and SLURM on this machine. What cannot be installed is skipped, with the reason.
test-cluster: $(READY)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ray,slurm]'
	$(BIN)/python -m pytest -m cluster --durations=15

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pytest benchmarks -m "" --benchmark-only --benchmark-quiet --tb=line $(BENCH)

# Our PGD against foolbox's, in an environment of its own: foolbox is no dependency of ours.
parity:
	test -x .venv-parity/bin/python || $(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' foolbox==3.3.4
	.venv-parity/bin/python -m pytest tests/parity -m slow -s

# Rebuild what is generated: the board's tables, the CLI reference, the JSON Schema.
board docs: $(READY)
	$(BIN)/python scripts/generate.py

# The documentation as a site, in site/: every link is checked, and that no page loads anything from
# elsewhere.
site: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python scripts/check_site.py site

clean:
	rm -rf $(VENV) .venv-parity build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks runs

# The stamp depends on pyproject.toml, so a change of dependencies reinstalls.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; call make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch with its CUDA libraries is 6 GB on disk (a CPU build that is there already is kept); a few minutes."
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	touch $(READY)
