# make up      a Chroma with the sample, served and kept, from a clone alone
# make test    everything that CI runs: ruff, mypy --strict, pytest
# Needs python3 and make; Debian packages are installed when they are missing, as root or with sudo.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 8000
PYTEST ?=
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 3 ? 6 : 2 * n)))
BENCH  ?=
SNAPSHOTS ?= 500
# Where it is set, as it is in many containers, each start of Python compiles all that it imports: four times as slow.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help up test lint bench stress soak clean packages servers storage clients promtool
.DEFAULT_GOAL := help

help:
	@echo 'make up      serve and keep the sample: Chroma on ./data, repository in ./keep, port $(PORT)'
	@echo 'make test    install what the tests need, then ruff, mypy --strict and pytest'
	@echo 'make lint    ruff and mypy only'
	@echo 'make bench   the figures, against restic, tar and plain chroma run'
	@echo 'make stress  $(SNAPSHOTS) snapshots under live writers, each compared exactly, kills, lost disks,'
	@echo '             instances that take over from each other, instances on one PostgreSQL'
	@echo 'make soak    ten minutes of everything at once at the door; the tests of chromadb itself, of a'
	@echo '             stock server and of PostgreSQL; ten times the snapshots of stress'
	@echo 'make clean   remove what these made, ./data and ./keep too'

# The shell that becomes chromakeep starts the loader first, so Ctrl-C reaches both; the loader ends when it is gone.
up: $(VENV)/.up
	@$(BIN)/python sample/load.py --url http://127.0.0.1:$(PORT) --while-pid $$$$ & \
	 RUST_LOG=$${RUST_LOG:-warn} exec $(BIN)/chromakeep run --data ./data --repository ./keep --every 10s --port $(PORT)

# What is installed is waited for on the network, so it is done at once with what needs none of it. Tests wait too, for
# processes, locks and disks: two files a core at a time.
test: $(VENV)/.dev
	@$(MAKE) --no-print-directory -j 4 lint packages servers
	sh tools/python310.sh
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev packages servers
	$(BIN)/python bench/bench.py $(BENCH)
	$(BIN)/python bench/replication.py
	$(BIN)/python bench/ways.py
	$(BIN)/python bench/records.py
	$(BIN)/python bench/send.py
	$(BIN)/python bench/door.py
	$(BIN)/python bench/shield.py
	$(BIN)/python bench/postgres.py
	$(BIN)/python bench/scale.py

stress: $(VENV)/.dev servers
	$(BIN)/python tests/stress/live_writers.py --through backup --snapshots $(SNAPSHOTS)
	$(BIN)/python tests/stress/live_writers.py --through held --snapshots 100
	$(BIN)/python tests/stress/kill_run.py --rounds 50
	$(BIN)/python tests/stress/lost_disks.py --rounds 100 --durability sync
	$(BIN)/python tests/stress/lost_disks.py --rounds 100 --durability async
	$(BIN)/python tests/stress/hand_over.py --rounds 40 --durability sync --long
	$(BIN)/python tests/stress/hand_over.py --rounds 20 --durability async --long
	$(BIN)/python tests/stress/postgres_instances.py
	SEEDS=new DAMAGE_EVERY=1 $(BIN)/python -m pytest -q --timeout 3600 tests/operations/test_damage.py
	SEEDS=new MACHINE_EXAMPLES=40 $(BIN)/python -m pytest -q --timeout 3600 tests/run/test_machine.py
	SEEDS=new DIFFERENTIAL_EXAMPLES=500 $(BIN)/python -m pytest -q --timeout 3600 tests/server/test_differential*.py

soak: $(VENV)/.dev
	$(BIN)/python tests/stress/soak_door.py --minutes 10
	$(BIN)/python tests/stress/chroma_own_tests.py --seed $$(date +%j)
	$(BIN)/python tests/stress/live_writers.py --through backup --snapshots $(SNAPSHOTS)0 --seed $$(date +%j)

clean:
	rm -rf $(VENV) .servers .mypy_cache .ruff_cache .pytest_cache .hypothesis dist data keep
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.up: pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[chroma,arrow]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	@touch $@

# Debian keeps the half of venv that installs pip in a package of its own.
$(BIN)/uv:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || sh tools/packages.sh ensurepip:python3-venv
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

packages:
	@sh tools/packages.sh restic strace mkfs.xfs:xfsprogs nginx caddy pgbouncer

servers: promtool clients

storage: | $(BIN)/uv
	@sh tools/servers.sh

clients: storage
	@sh tools/clients.sh

# After the packages, for two apt-get would wait for each other's lock, or fail.
promtool: packages
	@sh tools/promtool.sh
