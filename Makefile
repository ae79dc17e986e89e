# Every target makes the virtual environment that it needs; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
DEMO_TEXT := The train to the beach leaves at noon.

.PHONY: demo test test-fast test-slow test-tpu gpu lint clean

demo: $(VENV)/.plot
	$(BIN)/indextts-jax speak --model tiny --text "$(DEMO_TEXT)" --output demo.wav --plot demo.png --force --quiet
	@echo "demo.wav says: $(DEMO_TEXT) demo.png is its mel. In your own words:"
	@echo "  $(BIN)/indextts-jax speak --text \"My father has a small dog and seven books.\" -o mine.wav"
	@echo "The model is small and knows some two hundred words. With the official weights of IndexTTS-2:"
	@echo "  $(BIN)/indextts-jax download checkpoints --convert model --accept-licence"
	@echo "  $(BIN)/indextts-jax speak --model model --voice voice.wav --text \"Hello.\" --output hello.wav"

# test: all but the tests that take longest, which are test-slow. test-fast: what a change in one file needs.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(PYTEST)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist load -m slow $(PYTEST)

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not whole" $(PYTEST)

# The programs compiled for a TPU, without one: needs some 1.5 GB more on the disk and several minutes.
test-tpu: $(VENV)/.dev $(VENV)/.tpu
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow tests/test_target.py $(PYTEST)

# On a machine with an NVIDIA GPU: figures, a profile and tests in ten minutes, to gpu/page.md. Where nothing can be
# installed, with an interpreter that has what pyproject.toml names: python -m debug.gpu --output gpu
gpu: $(VENV)/.dev $(VENV)/.cuda
	$(BIN)/python -m debug.gpu --output gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv demo.wav demo.png .pytest_cache .ruff_cache *.egg-info

$(VENV)/.%: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
