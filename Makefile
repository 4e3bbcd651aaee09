# Every target makes its own environment, .venv, once: it is renewed when pyproject.toml or constraints.txt change.
#   make demo                synthetic sections, offline, minutes
#   make demo DATA=her2st    the same on real sections (HGGEP_DATASETDIR, else downloaded)

PYTHON ?= python3
DATA = synthetic
OUT = demo_output
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help demo model test lint docs clean

help:
	@echo "make demo [DATA=synthetic|her2st] [OUT=demo_output]   train, predict a held-out section, evaluate, draw"
	@echo "make model                                            fit five sections of HER2+ tumours, with a card: her2.hggep"
	@echo "make test                                             run the tests"
	@echo "make lint                                             ruff, codespell, mypy and which room may import which"
	@echo "make docs                                             build the site into docs/_build/html"
	@echo "make clean                                            remove the environment, caches and demo output"

# --group, by which pip reads dependency groups, is new in pip 25.1; Python 3.11 comes with an older one
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	# they ask for torchvision, which is not there for every build of torch, and which the tests have a stand-in for
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps timm lazyslide lazyslide-models
	touch $@

demo: $(INSTALLED)
	$(BIN)/python demo.py --data $(DATA) --out $(OUT)

# sections that are not at hand are downloaded
model: $(INSTALLED)
	$(BIN)/python benchmarks/model.py --out her2.hggep

# in as many processes as there are cores, of one thread each: threads of several would wait for one another.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

# a warning is an error, after all of them are listed
docs: $(INSTALLED)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --jobs auto -b html docs docs/_build/html

clean:
	rm -rf docs/_build docs/api/generated .venv .pytest_cache .mypy_cache .ruff_cache demo_output dist
