PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FASTAI := .venv-fastai
# Only what the locks name, by hash and ready built: no package's own script runs while it is installed.
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all:
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --only-binary :all: \
	--custom-compile-command 'make lock' $(FLAGS)
OUTPUTS ?= outputs
IMAGES ?= 600
KILLS ?= 100
# A file's tests stay together, for what they share; on every core, as far as memory for several networks reaches.
PYTEST = $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SAMPLE = $(OUTPUTS)/sample

.PHONY: help setup dev lock demo test families families-bundles quick coverage check check-deploy image exports fmt bench bench-serving attack gpu-check crash clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

setup: $(VENV)/.runtime  ## make .venv with everything that runs

dev: $(VENV)/.dev  ## add what tests and checks need

$(VENV)/.runtime: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r $<
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(INSTALL) -r $<
	touch $@

lock: dev  ## write the locks anew from requirements*.txt (FLAGS=--upgrade: with the newest of what those leave open)
	$(LOCK) requirements.txt -o requirements.lock
	$(LOCK) requirements-serve.txt -c requirements.lock -o requirements-serve.lock
	$(LOCK) requirements-export.txt -c requirements.lock -o requirements-export.lock
	echo torch | $(LOCK) --excludes /dev/stdin requirements-tflite.txt -o requirements-tflite.lock
	$(LOCK) requirements-registry.txt -c requirements.lock -o requirements-registry.lock
	$(LOCK) deploy/requirements-mlflow.txt -o deploy/requirements-mlflow.lock
	$(LOCK) requirements-dev.txt -c requirements.lock -o requirements-dev.lock

demo: setup  ## draw the sample data and run the whole pipeline on it (CPU, no network)
	$(BIN)/python -m spectacles.sample_data --output_dir $(SAMPLE) --images $(IMAGES)
	$(BIN)/python run_pipeline.py --train_csv $(SAMPLE)/train.csv --image_dir $(SAMPLE)/dataset \
		--test_csv $(SAMPLE)/test.csv --test_fraction 0.15 --image_size 160 --epochs 6 --device cpu \
		--output_dir $(OUTPUTS) $(FLAGS)

test: check  ## check the code and run all tests (ten minutes on two cores)
	$(PYTEST)

families: dev  ## train and export a backbone of every family of timm (four minutes)
	$(PYTEST) --dist load -m "families and not bundles" tests/models/test_families.py

families-bundles: dev  ## the same with the export of a bundle, which takes longer (a quarter of an hour)
	$(PYTEST) --dist load -m bundles tests/models/test_families.py

quick: dev  ## run the unit tests that start no browser, server or process and train nothing (a minute and a half)
	$(PYTEST) --ignore tests/e2e --ignore tests/stages --ignore tests/server -m "not (browser or server or process or slow or families)"

coverage: dev  ## run all tests and list the lines that none of them runs
	$(PYTEST) --cov --cov-report term:skip-covered

check: dev check-deploy  ## ruff, mypy, bandit, the order of imports, and what is deployed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive spectacles benchmarks *.py

# Dockerfiles, the compose file, Kubernetes and the workflows. actionlint comes from github.com, so it is used where it is.
check-deploy: dev
	$(BIN)/hadolint deploy/Dockerfile deploy/Dockerfile.train deploy/Dockerfile.mlflow
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	for each in base next-model; do \
		$(BIN)/kubectl kustomize deploy/kubernetes/$$each > $(VENV)/$$each.yaml \
		&& $(BIN)/kubernetes-validate --strict --quiet $(VENV)/$$each.yaml || exit 1; \
	done
	$(BIN)/zizmor --offline --quiet --no-progress .github
	if command -v actionlint > /dev/null; then actionlint; else echo "no actionlint here: the workflows are checked by schema only"; fi

image: dev  ## build the serving image with buildah, start it and ask it (as root)
	$(PYTEST) --numprocesses 0 -m image tests/e2e/test_image.py -rs

exports: dev  ## write and run the exports that take environments of their own: TFLite, a Gradio space (fetches 2 GB)
	$(PYTEST) --numprocesses 0 -m exports tests/e2e/test_exports.py -rs

$(FASTAI)/.installed: benchmarks/requirements-fastai.txt
	test -x $(FASTAI)/bin/python || $(PYTHON) -m venv $(FASTAI)
	$(FASTAI)/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements-fastai.txt
	touch $@

bench: setup $(FASTAI)/.installed  ## compare with a tutorial loop and fastai (SPECTACLES_DATA=, FOLDER_DATA=, FLAGS=)
	$(BIN)/python -m benchmarks.compare $(if $(SPECTACLES_DATA),--spectacles_data $(SPECTACLES_DATA)) \
		$(if $(FOLDER_DATA),--folder_data $(FOLDER_DATA)) --output_dir $(OUTPUTS)/bench $(BENCH) -- $(FLAGS)

SERVING := .venv-serving

$(SERVING)/.installed: benchmarks/requirements-serving.txt requirements.txt
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements-serving.txt
	touch $@

bench-serving: setup $(SERVING)/.installed  ## compare the server with LitServe and mlflow (BUNDLE=, PHOTO=; needs wrk)
	$(BIN)/python -m benchmarks.serving --bundle $(BUNDLE) --photo $(PHOTO) --output_dir $(OUTPUTS)/bench-serving \
		--python $(SERVING)/bin/python

attack: setup  ## attack the server and count what is lost (BUNDLE=, PHOTO=, FLAGS='--odd FOLDER')
	$(BIN)/python -m benchmarks.attack --bundle $(BUNDLE) --photo $(PHOTO) --output_dir $(OUTPUTS)/attack $(FLAGS)

gpu-check: setup  ## check all that a CUDA card does here, in four minutes (without one a dry run on the CPU)
	$(BIN)/python -m benchmarks.gpu_check --output_dir $(OUTPUTS)/gpu-check-$$(date +%s) $(FLAGS)

crash: setup  ## kill a training 100 times, go on, and compare (KILLS=)
	$(BIN)/python -m benchmarks.crash --output_dir $(OUTPUTS)/crash-$$(date +%s) --kills $(KILLS)

fmt: dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove caches (not outputs/)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
