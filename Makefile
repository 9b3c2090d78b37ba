# Everything runs in a virtual environment of its own, made from the pinned versions in constraints.txt.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

# Processes that run tests, each a file at a time; the order is that of tests/conftest.py.
JOBS ?= 2
PARALLEL = --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# CIFAR-10: a folder of train-*.parquet and test-*.parquet, or a name on the Hub.
CIFAR10 ?= uoft-cs/cifar10

# Idle threads sleep instead of spin: on a machine that other programs use, too, that is ten times as fast.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help pretrain test test-fast test-all check style docs bench bench-gpu reproduce-cifar10 ablations clean

help:
	@echo "make pretrain   pre-train a small MAE on the embedded images, draw a sheet, load it back (minutes on a CPU)"
	@echo "make test       run the tests, five to eight minutes on two quiet cores"
	@echo "make test-fast  run those that take a minute together, for daily work"
	@echo "make test-all   run the long proofs, too"
	@echo "make check      verify format, lint, types and spelling;  make style: format the code"
	@echo "make docs       build the site of docs/ and the docstrings in site/, strict about links (a minute)"
	@echo "make bench      compare training steps, input path and inference with other implementations (half an hour)"
	@echo "make bench-gpu  measure what matters on a GPU, in order of worth (ten minutes; again: what is still missing)"
	@echo "make reproduce-cifar10   pre-train, probe and fine-tune on CIFAR-10, and from scratch (two hours)"
	@echo "make ablations  the paper's ablations in small, on CIFAR-10 (two hours and a half)"
	@echo "make clean      remove the environment and the runs"

pretrain: $(VENV)/.installed
	$(BIN)/hf-mae pretrain --output_dir runs/fashion_mnist_sample
	$(BIN)/hf-mae reconstruct runs/fashion_mnist_sample --output runs/fashion_mnist_sample/sheet.png
	$(BIN)/python examples/load_pretrained.py runs/fashion_mnist_sample

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not slow and not long"

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL) -m ""

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

style: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Files that are no pages are linked in the repository, if it has an address. griffe reads the sources, nothing is run.
docs: export REPOSITORY_URL ?= $(shell git config --get remote.origin.url)
docs: export NO_MKDOCS_2_WARNING = true
docs: $(VENV)-docs/.installed
	$(VENV)-docs/bin/mkdocs build --quiet
	@echo "Open site/index.html; the search needs a server: $(PYTHON) -m http.server --directory site"

# The official code takes part if OFFICIAL is its checkout, lightly and timm if they are installed.
bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/training_step.py --output runs/bench/training_step.json $(if $(OFFICIAL),--official $(OFFICIAL))
	$(BIN)/python benchmarks/input_path.py --output runs/bench/input_path.json
	$(BIN)/python benchmarks/inference.py --output runs/bench/inference.json
	$(BIN)/python benchmarks/modules.py --output runs/bench/modules.json
	$(BIN)/python benchmarks/growth.py --output runs/bench/growth.json

bench-gpu: $(VENV)/.installed-test
	$(BIN)/python benchmarks/gpu.py

reproduce-cifar10: $(VENV)/.installed-test
	PYTHON=$(BIN)/python experiments/cifar10.sh $(CIFAR10)
	$(BIN)/python experiments/report.py show runs/cifar10

ablations: $(VENV)/.installed-test
	PYTHON=$(BIN)/python experiments/ablations.sh $(CIFAR10)
	$(BIN)/python experiments/report.py show runs/ablations

clean:
	rm -rf $(VENV) $(VENV)-docs site runs

# torch first and by itself: its CPU build satisfies the rest, where there is one.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	touch $@

# Groups of dependencies need pip 25.1.
$(VENV)-docs/.installed: pyproject.toml constraints.txt
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group docs
	touch $@
