# Temper: data -> adapter -> merged model -> HTTP endpoint. `make` prints help made from this file.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-builtin-variables --no-print-directory
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

##@ Settings
SCENARIO ?= customer-service  ## what to make: a file in configs/scenarios
PROFILE ?= cpu                ## how big: a file in configs/profiles
MODEL ?=                      ## a base model in place of the scenario's: a file in configs/models
SET ?=                        ## overrides: SET='train.lora_rank=16 serve.port=8001'
RUNTIME ?= local              ## where stages run: local (the .venv here)
PORT ?=                       ## port to serve on (default: serve.port, 8000)
BUILD ?= build                ## folder of everything made at run time
WAIT ?= 1                     ## 0: fail at once when another make holds the scenario

# A value's trailing blanks come from the comments above.
override SCENARIO := $(strip $(SCENARIO))
override PROFILE := $(strip $(PROFILE))
override MODEL := $(strip $(MODEL))
override RUNTIME := $(strip $(RUNTIME))
override BUILD := $(strip $(BUILD))
override SET := $(strip $(SET) $(if $(strip $(PORT)),serve.port=$(strip $(PORT))))

VENV := .venv
INSTALLED := $(VENV)/installed $(if $(filter gpu-% multi-%,$(PROFILE)),.venv-cuda/installed)
STATE := $(BUILD)/$(SCENARIO)/$(PROFILE)/.state
TEMPER := $(VENV)/bin/python -m temper
export PYTHONPATH := scripts
export TEMPER_BUILD := $(BUILD)
export WAIT := $(strip $(WAIT))
quoted = '$(subst ','\'',$1)'
ARGS = --scenario $(call quoted,$(SCENARIO)) --profile $(call quoted,$(PROFILE)) --model $(call quoted,$(MODEL)) --set $(call quoted,$(SET))

##@ Start here
.PHONY: help quickstart doctor new plan
help:  ## print this page
	@scripts/help.sh $(firstword $(MAKEFILE_LIST))

quickstart: $(INSTALLED)  ## everything once, on a CPU with a small real model: train, serve, ask two questions
	@$(TEMPER) quickstart $(ARGS)

doctor:  ## what this machine lacks, and the command that mends it
	@PYTHONPATH=scripts $(or $(wildcard $(VENV)/bin/python),python3) -m temper doctor $(ARGS)

new: $(VENV)/installed  ## a scenario for your own file: SCENARIO=mine INPUT=my.csv INSTRUCTION_COL=question OUTPUT_COL=answer
	@$(TEMPER) new $(ARGS) --input $(call quoted,$(INPUT)) \
	  --instruction_col $(call quoted,$(INSTRUCTION_COL)) --output_col $(call quoted,$(OUTPUT_COL))

plan: $(VENV)/installed  ## what would run and why, and what it needs; runs nothing
	@$(TEMPER) plan $(ARGS)

##@ Make a model
.PHONY: install model data train merge verify
install: $(INSTALLED)  ## the Python environment in .venv, from a hash-locked list; GPU profiles: .venv-cuda too

model: $(STATE)/model.done  ## the base model, fetched and checked
data: $(STATE)/data.done    ## the rows, checked and split
train: $(STATE)/train.done  ## an adapter, by LLaMA Factory
merge: $(STATE)/merge.done  ## the merged model, past the gate

verify: $(VENV)/installed  ## hash every result again and compare with its manifest
	@$(TEMPER) verify $(ARGS)

##@ Use it
.PHONY: serve ask stop logs status
serve: $(STATE)/merge.done  ## an HTTP endpoint with TGI's API, on loopback, ready once the golden answers agree
	@$(TEMPER) serve $(ARGS)

ask: $(VENV)/installed  ## ask the running server: make ask Q='How long is the return window?'
	@$(TEMPER) ask $(ARGS) --question $(call quoted,$(Q))

stop: $(VENV)/installed  ## stop the server
	@$(TEMPER) stop $(ARGS)

logs: $(VENV)/installed  ## the server's log
	@$(TEMPER) logs $(ARGS)

status: $(VENV)/installed  ## what is made, and whether the server runs
	@$(TEMPER) status $(ARGS)

##@ Work on Temper
.PHONY: test check lock bench-train bench-merge bench-graph clean
test: $(VENV)/installed-dev  ## everything that proves the repository: T=tests/graph for one folder
	@$(VENV)/bin/python -m pytest $(or $(T),tests)

check: $(VENV)/installed-dev  ## format, lint and type check
	@$(VENV)/bin/ruff format --check scripts tests && $(VENV)/bin/ruff check scripts tests && $(VENV)/bin/mypy

lock:  ## resolve every pin anew and show what moved
	@scripts/lock.sh

bench-train: $(VENV)/installed  ## tokens per CPU second against LLaMA Factory's defaults
	@$(VENV)/bin/python scripts/bench/train.py $(BENCH)

bench-merge: $(VENV)/installed  ## memory and CPU seconds of the merge against llamafactory-cli export and PEFT
	@$(VENV)/bin/python scripts/bench/merge.py $(BENCH)

bench-graph: $(VENV)/installed  ## a make with nothing to do against DVC and Snakemake
	@$(VENV)/bin/python scripts/bench/graph.py $(BENCH)

clean:  ## delete what was made for SCENARIO and PROFILE; ALL=1: everything, .venv too
	@$(if $(wildcard $(VENV)/bin/python),$(TEMPER) clean $(ARGS),rm -rf '$(BUILD)/$(SCENARIO)/$(PROFILE)')
	@$(if $(ALL),rm -rf '$(BUILD)' $(VENV) .venv-cuda)

# The environment. The lock's digest stands in the file, so a changed lock installs and an untouched one does not.
$(VENV)/installed: docker/locks/cpu.txt scripts/llamafactory/install_llamafactory.sh
	@sha256sum --status -c $@ 2>/dev/null && touch $@ || bash scripts/llamafactory/install_llamafactory.sh
.venv-cuda/installed: docker/locks/cuda.txt scripts/llamafactory/install_llamafactory.sh
	@sha256sum --status -c $@ 2>/dev/null && touch $@ || bash scripts/llamafactory/install_llamafactory.sh --cuda
$(VENV)/installed-dev: docker/locks/dev.txt $(VENV)/installed
	@bash scripts/llamafactory/install_llamafactory.sh --dev

# The graph. A stage's .paths names what it reads and has written, its .list holds their ctime, size and inode as they
# were when it was last found current. Where the two differ, the list is deleted, which is all Make looks at; the stage
# then compares digests, and runs its body only if they differ. docs/decisions/0001 says why not mtimes alone.
STAGES := model data train merge
.PHONY: FORCE
$(STAGES:%=$(STATE)/%.list) &: FORCE | $(INSTALLED)
	@scenario='$(SCENARIO)' profile='$(PROFILE)' state='$(STATE)' stages=($(STAGES)) look=($(TEMPER) look $(ARGS)) \
	  asked='$(subst ','\'',$(RUNTIME) $(MODEL) $(SET))'; . scripts/stale.sh

define stage  # $1: the stage, $2: the stages before it
$(STATE)/$1.done: $(STATE)/$1.list $(2:%=$(STATE)/%.done) | $(INSTALLED)
	@$(TEMPER) stage $1 $(ARGS)
	@touch $$@
endef
$(eval $(call stage,model,))
$(eval $(call stage,data,))
$(eval $(call stage,train,model data))
$(eval $(call stage,merge,train))
