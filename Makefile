# The front door: `make repro` runs the pipeline, `make test` runs the tests, and `make verify`
# proves that a clean clone gives the bytes that are committed.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: repro recipe study experiments report push pull test verify bench lint lock

repro: .venv/.ready
	python -m tools.repair_dvc
	dvc repro

# RECIPE is a name in recipes.yaml. A run becomes the DVC experiment of that name.
RECIPE = default
recipe: .venv/.ready
	python -m tools.repair_dvc
	python -m tools.recipe -- "$(RECIPE)"

# Trains the recipe with seeds 1 to SEEDS and scores each network on the test set, once.
SEEDS = 5
study: .venv/.ready
	python -m tools.repair_dvc
	dvc repro --quiet preprocess
	python -m tools.study -- "$(RECIPE)" "$(SEEDS)"

# The best first, in a table that fits a terminal: the parameters that differ, one figure, no hashes.
experiments: .venv/.ready
	dvc exp show --only-changed --sort-by validation.accuracy --sort-order desc \
		--drop 'Created|.*(/|error|loss)|(train|test)\.accuracy'

# REV is what the workspace is compared with: a commit, a branch, a tag or an experiment.
REV = HEAD
report: .venv/.ready
	python -m tools.report -- "$(REV)"

# The run in the workspace and all results in the run cache, through DVC's default remote.
push pull: .venv/.ready
	python -m tools.repair_dvc
	python -m tools.share $@

test: .venv/.ready
	pytest --cov --cov-report=term:skip-covered

# VERIFY="--quick --vary all" runs it under variations; see tests/checks/verify.py.
verify: .venv/.ready
	python -m tests.checks.verify $(VERIFY)

# Against other libraries, about eight minutes; BENCH="--quick" takes a few.
bench: .bench-venv/.ready
	.bench-venv/bin/python -m benchmark.run $(BENCH)

lint: .venv/.ready
	ruff check
	ruff format --check
	mypy

# Built anew only when a lock file changes. A lock file names everything, so pip need not look for
# dependencies: it fails on `name[extra]` as soon as the package index has a newer `name`.
.venv/.ready: requirements.lock requirements-dev.lock
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--no-deps -r requirements.lock -r requirements-dev.lock
	touch $@

# For Linux, pip's configuration must lead to PyTorch's CPU build: the default index has only builds
# that need CUDA's libraries.
.bench-venv/.ready: requirements.lock requirements-bench.lock
	$(PYTHON) -m venv .bench-venv
	.bench-venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--no-deps -r requirements.lock -r requirements-bench.lock
	touch $@

# The hash of PyTorch's CPU build for Python 3.11 on x86-64 Linux, which the default index lacks.
TORCH_CPU = sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b

# Pin the newest versions of everything, for every platform at once. Needs uv.
LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --upgrade
lock:
	$(LOCK) pyproject.toml -o requirements.lock
	$(LOCK) --group dev -c requirements.lock -o requirements-dev.lock
	$(LOCK) --group bench -c requirements.lock -o requirements-bench.lock
	sed -i "s/^torch==\([^ ]*\)/torch==\1+cpu ; sys_platform == 'linux' \\\\\n    --hash=$(TORCH_CPU)\ntorch==\1 ; sys_platform != 'linux'/" requirements-bench.lock
