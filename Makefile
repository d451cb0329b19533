# Two commands: `make demo` trains, draws, answers and reports; `make test` runs every test. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
ARGS ?=
# lmms-eval and lm-eval with what they import (lmms-eval 0.7 a filelock below 4): all of their dependencies would bring
# another wandb and two hundred more.
HARNESSES := lmms-eval lm-eval filelock==3.20.0 evaluate loguru tenacity sacrebleu portalocker tabulate colorama lxml pytz python-dotenv \
	aiohttp aiohappyeyeballs aiosignal frozenlist multidict propcache yarl \
	pytablewriter DataProperty mbstrdecoder pathvalidate tabledata tcolorpy typepy chardet sqlitedict
# gradio with what it imports beside what is there, and what drives a browser that is there.
APP := gradio gradio-client hf-gradio brotli groovy orjson pydub pytz safehttpx semantic-version tomlkit playwright greenlet

.PHONY: demo test test-oldest lint format site notebooks clean

demo: $(VENV)/.installed
	$(BIN)/hybridgen demo $(ARGS)

# One thread a process: two spinning on a busy core take many times as long.
test: $(VENV)/.installed $(VENV)/int8 $(VENV)/metrics $(VENV)/harnesses $(VENV)/app lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# The oldest libraries that are allowed, in an environment of their own; PYTHON=python3.13 tries another Python as well.
test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto $(ARGS)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[dev]"
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/ as a site in site/, which opens without a server: site/index.html.
site: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean $(ARGS)

# Runs the notebooks and keeps what they show; `make notebooks ARGS="text_to_image"` runs one.
notebooks: $(VENV)/.installed
	$(BIN)/python scripts/run_notebooks.py $(ARGS)

# The stamp is made last, so an interrupted install is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# Only tests of int8 see these: transformers imports both wherever they are installed, at three seconds a start.
$(VENV)/int8: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@ torchao bitsandbytes
	touch $@

# Only tests of distances see these: torch-fidelity brings a package named `tests`, which would hide ours.
$(VENV)/metrics: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@ torch-fidelity torchmetrics lightning-utilities
	touch $@

# Only tests of the harnesses see these: they would change what other tests import.
$(VENV)/harnesses: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@ $(HARNESSES)
	touch $@

# Only tests of the web page see these: gradio 6.31 asks for a Pillow below 13, though it works with it.
$(VENV)/app: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@ $(APP)
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist site *.egg-info
