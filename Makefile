# The front door: a bare `make` lists the targets.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help repro recipe train study committee worker experiments report predict draw export walkthrough push pull test verify bench lint lock

help: ## list the targets; times are those of two cores
	@sed -n 's/^\([a-z ]*\):.*## \(.*\)/make \1	\2/p' Makefile | \
		awk -F '\t' '{ printf "%-17s %s\n", $$1, $$2 }'

repro: .venv/.ready ## run what is out of date in the pipeline: up to a minute
	python -m tools.repair_dvc
	dvc repro
	@python -m tools.summary

# A run becomes the DVC experiment of the recipe's name.
RECIPE = default
recipe: .venv/.ready ## run RECIPE=name of recipes.yaml as an experiment
	python -m tools.repair_dvc
	python -m tools.recipe -- "$(RECIPE)"
	@python -m tools.summary

# The ranks write what the train stage would, so DVC can record it as the stage's result. HOSTS=file
# has one `host:ranks` line per machine.
RANKS = 2
train: .venv/.mpi ## train over MPI with RANKS=2, on HOSTS=file or here
	python -m tools.repair_dvc
	dvc repro --quiet preprocess
	python -m tools.mpiexec -- "$(RANKS)" "$(HOSTS)"
	dvc commit --quiet --force train

# Scores the network of each seed from 1 to SEEDS on the test set, once.
# CLUSTER=local:2 or tcp://host:8786 shares the seeds out to Dask's workers, and
# SET="train.learning_rate=0.1,0.2 train.epochs=30,60" trains every combination, and HERE=1 also the
# seeds that another clone has trained: docs/studies.md.
SEEDS = 5
study: .venv/.ready $(if $(CLUSTER),.venv/.dask) ## train RECIPE=name with the seeds 1 to SEEDS=5
	python -m tools.repair_dvc
	dvc repro --quiet preprocess
	python -m tools.study --cluster="$(CLUSTER)" --set="$(SET)" $(if $(HERE),--here) \
		-- "$(RECIPE)" "$(SEEDS)"

committee: .venv/.ready ## score committees of the networks of RECIPE=name's study
	python -m tools.repair_dvc
	dvc repro --quiet fetch
	@python -m tools.committee -- "$(RECIPE)"

worker: .venv/.dask ## train seeds for the studies on SCHEDULER=tcp://host:8786
	python -m tools.worker -- "$(SCHEDULER)"

experiments: .venv/.ready ## rank this commit's experiments, the best first
	@python -m tools.experiments

REV = HEAD
report: .venv/.ready ## compare the workspace with REV=HEAD: reports/report.html
	python -m tools.report -- "$(REV)"

# PREDICT="--json" prints all probabilities, PREDICT="--picture FILE.png" shows what the network saw.
predict: .venv/.ready ## say which digits IMAGES="photo.jpg scans/*.png" show
	@python -m tools.predict $(PREDICT) -- $(IMAGES)

draw: .venv/.ready ## put the network on a page to draw on: reports/draw.html
	python -m tools.draw

# Takes uint8 images as they are; each file's metadata has labels, accuracy and the model's hash.
export: .venv/.ready ## write the model as ONNX, Keras and safetensors into models/
	python -m tools.export

walkthrough: .venv/.ready ## run docs/walkthrough.ipynb and save it with its outputs
	python -m tools.repair_dvc
	dvc repro --quiet fetch
	python -m tools.walkthrough

push: .venv/.ready ## send data, models and the run cache to DVC's remote
	python -m tools.repair_dvc
	python -m tools.share push

pull: .venv/.ready ## get them from there
	python -m tools.share pull

test: .venv/.ready .venv/.mpi .venv/.dask ## run the tests: about ten minutes
	pytest --numprocesses=auto --dist=loadfile

# VERIFY="--quick --vary all" runs it under variations; see tests/checks/verify.py.
verify: .venv/.ready ## run a clean clone of HEAD and compare all bytes: a minute
	python -m tests.checks.verify $(VERIFY)

# BENCH="--quick" takes a few minutes, and leaves the committed report as it is.
bench: .bench-venv/.ready ## train against other libraries: about nine minutes
	.bench-venv/bin/python -m benchmark.run $(BENCH)

lint: .venv/.ready ## check style and types
	ruff check
	ruff format --check
	mypy
	lint-imports --no-cache

# Built anew only when a lock file changes. A lock file names everything, so pip need not look for
# dependencies: it fails on `name[extra]` as soon as the package index has a newer `name`.
.venv/.ready: requirements.lock requirements-dev.lock
	@$(PYTHON) -c 'import sys; found = sys.version_info[:2]; sys.exit(None if found in ((3, 11), (3, 12), \
		(3, 13)) else f"error: PYTHON: {found[0]}.{found[1]}: must be Python 3.11, 3.12 or 3.13")'
	@echo "installing 3.2 GB of packages into .venv, 1.9 of them TensorFlow: about three minutes"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--no-deps -r requirements.lock -r requirements-dev.lock
	@touch $@

# On top of .venv, for whoever trains on many machines.
.venv/.mpi: .venv/.ready requirements-mpi.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--no-deps -r requirements-mpi.lock
	@touch $@

.venv/.dask: .venv/.ready requirements-dask.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--no-deps -r requirements-dask.lock
	@touch $@

# For Linux, pip's configuration must lead to PyTorch's CPU build: the default index has only builds
# that need CUDA's libraries.
.bench-venv/.ready: requirements.lock requirements-bench.lock
	@echo "installing the peers into .bench-venv: about three minutes"
	@$(PYTHON) -m venv .bench-venv
	@.bench-venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--no-deps -r requirements.lock -r requirements-bench.lock
	@touch $@

# The hash of PyTorch's CPU build for Python 3.11 on x86-64 Linux, which the default index lacks.
TORCH_CPU = sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b

LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --upgrade
lock: ## pin the newest packages for every platform at once; needs uv
	$(LOCK) pyproject.toml -o requirements.lock
	$(LOCK) --group dev -c requirements.lock -o requirements-dev.lock
	$(LOCK) --group dask -c requirements.lock -c requirements-dev.lock -o requirements-dask.lock
	$(LOCK) --group bench -c requirements.lock -o requirements-bench.lock
	$(LOCK) --group mpi -c requirements.lock -o requirements-mpi.lock
	sed -i "s/^torch==\([^ ]*\)/torch==\1+cpu ; sys_platform == 'linux' \\\\\n    --hash=$(TORCH_CPU)\ntorch==\1 ; sys_platform != 'linux'/" requirements-bench.lock
