# Each target is a line or two; PYTHON is any Python of at least 3.11.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
# A process for each core, one thread in each: files of tests side by side.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-full check reliability speed export-check gpu-check schema reference

.venv: .venv/installed

.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# What entity figures are compared with in tests; its source builds outside of an isolated build alone.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -c constraints.txt seqeval
	touch $@

quickstart: .venv/installed
	$(BIN)/python scripts/sft.py recipes/quickstart.yaml
	$(BIN)/python scripts/eval.py adapters/quickstart --data quickstart/data/heldout.jsonl

test: .venv/installed
	$(PYTEST) -m "not slow"

test-full: .venv/installed
	$(PYTEST)

check: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

reliability: .venv/installed
	$(BIN)/python benchmarks/reliability.py

# LLAMAFACTORY: the Python of an environment with llamafactory (benchmarks/speed.py says how to make one); left out without it.
speed: .venv/installed
	$(BIN)/python benchmarks/speed.py $(if $(LLAMAFACTORY),--llamafactory $(LLAMAFACTORY))

# Exports that need more packages: their tests skip without them.
export-check: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf,torchao,onnx]'
	HF_HUB_OFFLINE=0 $(BIN)/python -c "from lorasmith.export.llama_cpp import converter; converter()"
	$(BIN)/python -m pytest tests/test_gguf.py tests/test_packed.py tests/test_onnx.py tests/test_quantize.py

# GPU_PYTHON: any Python with a CUDA torch and this project's other packages.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu-check:
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu_check.py

schema: .venv/installed
	$(BIN)/python -c "import json; from pathlib import Path; from lorasmith import recipe, upstream; [Path(f'recipes/{one}.schema.json').write_text(json.dumps(recipe.json_schema(one), indent=1) + '\n') for one in upstream.CONFIGS]"
	$(BIN)/python -c "import json; from lorasmith.preparation import Preparation; print(json.dumps(Preparation.model_json_schema(), indent=1))" > recipes/prepare.schema.json

reference: .venv/installed
	$(BIN)/python docs/make_reference.py > docs/reference.md
	$(BIN)/python docs/make_memory.py > docs/memory.md
	$(BIN)/python docs/make_reliability.py > docs/reliability.md
	$(BIN)/python docs/make_troubleshooting.py > docs/troubleshooting.md
	$(BIN)/python docs/make_learning.py > docs/learning.md
	$(BIN)/python docs/make_scaling.py > docs/scaling.md
