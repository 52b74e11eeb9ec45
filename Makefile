# make demo, make test: install what is missing into the active virtual environment (or into .venv), and run.
PYTHON ?= python3
FAISS ?= cpu
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
STAMP := $(VENV)/.fastreid-ice-$(FAISS)

.PHONY: demo test lint format install

demo: install
	$(BIN)/python tools/demo.py

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(FAISS),export,test]"
	$(BIN)/python -m pip install --quiet --no-deps fastreid==1.4.0
	touch $@
