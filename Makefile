# `make` lists the targets. Everything is installed into .venv; nothing outside this folder is changed.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup course run real test test-long test-all lint lock site clean

# The interpreter that .venv is made with: 3.11 where there is one. Another: make setup PYTHON=python3.12
PYTHON ?= $(shell python3.11 -c "" 2>/dev/null && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# pip names, package by package, every local index folder that lacks it; that is no news to anyone.
QUIETLY := 2> >(grep -v "is ignored: it is neither a file nor a directory" >&2)
TORCH_INDEX := https://download.pytorch.org/whl
TORCH_CPU_INDEX := $(TORCH_INDEX)/cpu

# The package list: the direct dependencies with an NVIDIA GPU (pip adds CUDA and the rest), the complete list without.
HAS_GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
REQUIREMENTS := $(if $(HAS_GPU),requirements.txt requirements-dev.txt,requirements-cpu.txt)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## create .venv and install the pinned packages (about 2 minutes once, then nothing)
	@echo "$(VENV) is ready."

run: OUTPUT_DIR ?= outputs/run
run: $(STAMP) ## the main job, mix to report, on the embedded profile: OUTPUT_DIR=outputs/run
	$(BIN)/python -m pipeline run --profile embedded --output-dir "$(OUTPUT_DIR)"

# Sets from Hugging Face, or DATA=FOLDER with reasoning/ chat/ [thinking_chat/] gsm8k/ ifeval/ (docs/real_weights.md). Without
# thinking_chat/ the model writes its own: answers to 1,300 questions of chat/, each with and without conditions, and plans for
# them. It stops where the hybrid is not accepted; FIDELITY=0.9 asks less of it than 0.95.
HYBRID_DIR := outputs/models/smollm2-135m-hybrid
REAL_OWN := outputs/real_own
REAL_ASKS = $(if $(DATA),$(if $(wildcard $(DATA)/thinking_chat),,yes))
REAL_ITEMS = $(if $(DATA),$(foreach name,gsm8k ifeval,--set "evaluation.dataset_args.$(name).local_path=$(DATA)/$(name)"))
REAL_ROWS = $(if $(DATA),$(foreach name,$(1),--set "mix.local.$(name)=$(DATA)/$(name)"))
REAL_CHAT = $(if $(REAL_ASKS),--set "mix.local.chat=$(REAL_OWN)/chat/rows.jsonl" \
	--set "mix.local.thinking_chat=$(REAL_OWN)/chat.thinking/rows.jsonl",$(call REAL_ROWS,chat thinking_chat))
REAL_QUESTIONS = $(if $(DATA),$(foreach name,own_chat own_chat_direct,--set "mix.local.$(name)=$(DATA)/chat") \
	$(foreach name,own_maths own_maths_direct,--set "mix.local.$(name)=$(DATA)/reasoning"))
real: OUTPUT_DIR ?= outputs/real
real: $(STAMP) ## a real pretrained model on a CPU: fetched, made hybrid, fine-tuned, measured: DATA=FOLDER
	$(BIN)/python -m pipeline models fetch smollm2-135m
	$(if $(REAL_ASKS),$(BIN)/python -m pipeline rehearse --profile smollm2-135m --set model.name=outputs/models/smollm2-135m \
		--set evaluation.sampling.non_thinking.max_new_tokens=300 --questions "$(DATA)/chat" --rows 1300 --mode non_thinking \
		--conditions --plan --output-dir $(REAL_OWN))
	$(BIN)/python -m pipeline hybridise --profile smollm2-135m --output-dir $(HYBRID_DIR) --resume \
		$(call REAL_ROWS,reasoning) $(if $(DATA),--set "mix.local.steps=$(DATA)/reasoning") $(REAL_CHAT) $(REAL_ITEMS) \
		$(if $(FIDELITY),--set hybrid.fidelity=$(FIDELITY))
	$(BIN)/python -m pipeline run --profile smollm2-135m --output-dir "$(OUTPUT_DIR)" --resume \
		$(call REAL_ROWS,chat) $(REAL_QUESTIONS) $(REAL_ITEMS)

course: OUTPUT_DIR ?= outputs/course
course: $(STAMP) ## the main job, then notebooks 00 to 12: OUTPUT_DIR=outputs/course
	$(BIN)/python -m pipeline run --profile embedded --output-dir "$(OUTPUT_DIR)/main" --resume
	$(BIN)/python -m pipeline course --profile embedded --output-dir "$(OUTPUT_DIR)"

TEST_WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist worksteal
test: $(STAMP) ## run the tests, two at a time (about 8 minutes): TEST_WORKERS=2
	$(PYTEST) -m "not slow and not nightly"

test-long: $(STAMP) ## those that train, start servers or run whole notebooks; they have to pass too
	$(PYTEST) -m "slow and not nightly"

test-all: $(STAMP) ## what both leave out, by night: every notebook, all methods, many random examples
	HYPOTHESIS_PROFILE=nightly $(PYTEST) -m "nightly or hypothesis"

lint: $(STAMP) ## check style, format, types and the import rule
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy pipeline
	$(BIN)/lint-imports --no-logo

lock: $(STAMP) ## rebuild requirements-cpu.txt from requirements.txt; versions that still fit stay
	cp requirements-cpu.txt $(VENV)/lock.txt
	$(BIN)/uv pip compile requirements.txt requirements-dev.txt --python-version 3.11 --universal \
		--override requirements-overrides.txt --no-header --no-annotate --quiet --output-file $(VENV)/lock.txt
	{ grep '^#' requirements-cpu.txt; grep -v '^#' $(VENV)/lock.txt; } > $(VENV)/requirements-cpu.txt
	mv $(VENV)/requirements-cpu.txt requirements-cpu.txt
	rm $(VENV)/lock.txt

# Tools of its own, in an environment of their own. EXECUTED: the OUTPUT_DIR of a `make course`, for pages with outputs; REPORT: a run whose
# report is shown; DEMO: a GGUF file that answers in a page (npm fetches the engine). Without --quiet, which keeps warnings from --strict.
SITE := outputs/site
site: ## the pages of README, docs and notebooks, in two languages: EXECUTED=outputs/course
	@test -e .venv-site/.installed -a .venv-site/.installed -nt requirements-docs.txt || { \
		$(PYTHON) -m venv --clear .venv-site && .venv-site/bin/pip install --quiet -r requirements-docs.txt $(QUIETLY) && \
		touch .venv-site/.installed; }
	.venv-site/bin/python docs/make_site.py $(SITE) $(EXECUTED) $(addprefix --report ,$(REPORT)) $(addprefix --demo ,$(DEMO))
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/mkdocs build --strict --config-file $(SITE)/mkdocs.yml
	@echo "Open $(SITE)/html/index.html."

clean: ## remove caches; .venv, outputs/ and runs/ stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis unsloth_compiled_cache
	find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -print0 | xargs -0 rm -rf

# uv leaves packages uncompiled. Python would compile them as they are first imported, and, where it may not write bytecode (many
# containers say so), in every process again: ten seconds of each start. What every command imports is compiled once, here.
COMPILED := unsloth, trl, datasets, evalscope.run, evalscope.api.benchmark, plotly.express, matplotlib.pyplot, optuna, papermill, \
	ipykernel, nbconvert, IPython.display, fasttext, phonenumbers, math_verify, sacrebleu, rouge_score, tensorboard, pytest
# A stopped or failed installation leaves no stamp, so the next `make setup` goes on with it.
$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "make setup needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is not one. Name it: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
ifeq ($(HAS_GPU),yes)
	@build=$$($(BIN)/python -m pipeline.core.driver) || exit 1; \
	echo "Installing into $(VENV) (NVIDIA GPU found; torch$${build:+ $$build}; several GB)"; \
	test -z "$$build" || $(BIN)/pip install --quiet --index-url "$(TORCH_INDEX)/$$build" "$$(grep '^torch==' requirements.txt)" $(QUIETLY)
	@$(BIN)/pip install --quiet -r requirements.txt -r requirements-dev.txt $(QUIETLY)
else
	@echo "Installing into $(VENV) (no NVIDIA GPU found: the CPU build of torch; about 2 minutes)"
	@$(BIN)/pip install --quiet "$$(grep '^uv==' requirements-cpu.txt)" $(QUIETLY) || echo "uv cannot be had; pip installs" >&2
	@grep -v '^torch==' requirements-cpu.txt > $(VENV)/others.txt; \
	others() { $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r $(VENV)/others.txt 2>/dev/null \
		|| $(BIN)/pip install --quiet --no-deps -r $(VENV)/others.txt $(QUIETLY); }; \
	others & torch=$$(grep '^torch==' requirements-cpu.txt); \
	$(BIN)/pip install --quiet --retries 0 --timeout 5 --no-deps --index-url $(TORCH_CPU_INDEX) "$$torch" 2>/dev/null \
		|| $(BIN)/pip install --quiet --no-deps "$$torch" $(QUIETLY) || { wait; exit 1; }; \
	wait $$!
endif
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c "import $(COMPILED)" >/dev/null 2>&1 || true
	@$(BIN)/python -m compileall -q pipeline
	@touch $(STAMP)
