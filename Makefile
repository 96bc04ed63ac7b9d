# make demo                    the whole job on voices synthesised on the spot
# make demo DATA=FOLDER        the same on your own audio
#   TRIALS=FILE                  and your own trial list: label enrol test
#   NOISE=FOLDER RIRS=FOLDER     recordings for augmentation
#   MINUTES=23 SEED=1 OUT=FOLDER METHOD=simclr ROUNDS=1
# make test                    the tests, in as many processes as JOBS (2)
# make test-all                also those that are marked slow
# make lint                    what CI asks of the style
# make docs                    the documentation, in docs/_build

PYTHON ?= python3
VENV ?= .venv
MINUTES ?= $(if $(DATA),23,5)
SEED ?= 1
OUT ?= results/demo
METHOD ?= simclr
ROUNDS ?= 1
JOBS ?= 2
run = $(VENV)/bin/python
# one thread for each process, as the processes already take all cores; files
# stay together, as their tests share what took time to make
pytest = OMP_NUM_THREADS=1 $(run) -m pytest -n $(JOBS) --dist loadfile

.PHONY: demo test test-all lint docs

demo: $(VENV)/ready
	cd recipes/AudioFolder/SSL && $(abspath $(run)) demo.py \
		--output_folder $(abspath $(OUT)) --minutes $(MINUTES) \
		--seed $(SEED) --method $(METHOD) --rounds $(ROUNDS) \
		$(if $(DATA),--data_folder $(abspath $(DATA))) \
		$(if $(TRIALS),--trials $(abspath $(TRIALS))) \
		$(if $(NOISE),--noise_folder $(abspath $(NOISE))) \
		$(if $(RIRS),--rir_folder $(abspath $(RIRS))) \
		$(if $(ROOMS),$(error ROOMS is now called RIRS))

test: $(VENV)/ready
	$(pytest) -m "not slow"

test-all: $(VENV)/ready
	$(pytest)

lint: $(VENV)/ready
	$(run) -m ruff check .
	$(run) -m ruff format --check .
	$(run) -m yamllint --no-warnings recipes hparams
	$(run) -m mypy

docs: $(VENV)/ready
	$(run) -m sphinx -q -W --keep-going docs docs/_build

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(run) -m pip install --quiet --upgrade pip
	$(run) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
