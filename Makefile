# Everything runs in a virtual environment of its own, made from the pinned versions in constraints.txt.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: help pretrain test style check clean

help:
	@echo "make pretrain   pre-train a small MAE on the embedded images and load it back (minutes on a CPU)"
	@echo "make test       run the tests"
	@echo "make style      format the code;  make check: verify format and lint"
	@echo "make clean      remove the environment and the runs"

pretrain: $(VENV)/.installed
	$(BIN)/python examples/run_pretraining.py
	$(BIN)/python examples/load_pretrained.py runs/fashion_mnist_sample

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

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
