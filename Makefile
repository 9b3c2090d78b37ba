# Everything runs in a virtual environment of its own, made from the pinned versions in constraints.txt.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

# CIFAR-10: a folder of train-*.parquet and test-*.parquet, or a name on the Hub.
CIFAR10 ?= uoft-cs/cifar10

.PHONY: help pretrain test bench reproduce-cifar10 ablations style check clean

help:
	@echo "make pretrain   pre-train a small MAE on the embedded images and load it back (minutes on a CPU)"
	@echo "make test       run the tests"
	@echo "make bench      time training steps, input path and inference beside other implementations (half an hour)"
	@echo "make reproduce-cifar10   pre-train, probe and fine-tune on CIFAR-10, and from scratch (an hour and a half)"
	@echo "make ablations  the paper's ablations in small, on CIFAR-10 (an hour and a half)"
	@echo "make style      format the code;  make check: verify format and lint"
	@echo "make clean      remove the environment and the runs"

pretrain: $(VENV)/.installed
	$(BIN)/python examples/run_pretraining.py
	$(BIN)/python examples/load_pretrained.py runs/fashion_mnist_sample

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

# The official code takes part where OFFICIAL is its checkout, lightly and timm where they can be imported.
bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/training_step.py --output runs/bench/training_step.json $(if $(OFFICIAL),--official $(OFFICIAL))
	$(BIN)/python benchmarks/input_path.py --output runs/bench/input_path.json
	$(BIN)/python benchmarks/inference.py --output runs/bench/inference.json
	$(BIN)/python benchmarks/modules.py --output runs/bench/modules.json
	$(BIN)/python benchmarks/growth.py --output runs/bench/growth.json

reproduce-cifar10: $(VENV)/.installed-test
	PYTHON=$(BIN)/python experiments/cifar10.sh $(CIFAR10)
	$(BIN)/python experiments/report.py show runs/cifar10

ablations: $(VENV)/.installed-test
	PYTHON=$(BIN)/python experiments/ablations.sh $(CIFAR10)
	$(BIN)/python experiments/report.py show runs/ablations

style: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs

# torch first and by itself: its CPU build satisfies the rest, where there is one.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	touch $@
