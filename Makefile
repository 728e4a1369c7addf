# Temper: data -> adapter -> merged model -> HTTP endpoint. `make` prints help made from this file.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-builtin-variables --no-print-directory
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

##@ Settings
SCENARIO ?= customer-service  ## what to make: a file in configs/scenarios
PROFILE ?=                    ## how big: a file in configs/profiles (default: cpu; with a GPU and an engine gpu-24g)
MODEL ?=                      ## a base model in place of the scenario's: a file in configs/models
SET ?=                        ## overrides: SET='train.lora_rank=16 serve.port=8001'
RUNTIME ?=                    ## where stages run: local (.venv), docker, podman (default: local; with a GPU the engine)
ENGINE ?=                     ## what serves: tgi, vllm or local (default: the profile's)
IMAGE ?= temper-cpu temper-cuda  ## which images: temper-cpu temper-cuda temper-serve
BASE_IMAGE ?=                 ## a base of your own: registry/debian@sha256:…
PIN ?=                        ## 1: record the image that make image builds as the wanted one
DETERMINISTIC ?=              ## portable: equal bytes on other types of CPU too, slower
LANG_DOC ?=                   ## language of the report: en or zh
PORT ?=                       ## port to serve on (default: serve.port, 8000)
BUILD ?= build                ## folder of everything made at run time
WAIT ?= 1                     ## 0: fail at once when another make holds the scenario

# With a GPU and a container engine, stages run in containers with profile gpu-24g; quickstart is for a CPU.
GPU := $(wildcard /dev/nvidiactl /dev/dxg)
FOUND := $(firstword $(foreach engine,docker podman,$(if $(wildcard $(addsuffix /$(engine),$(subst :, ,$(PATH)))),$(engine))))
CONTAINED := $(if $(GPU),$(if $(filter quickstart,$(MAKECMDGOALS)),,$(FOUND)))

# A value's trailing blanks come from the comments above.
override SCENARIO := $(strip $(SCENARIO))
override PROFILE := $(or $(strip $(PROFILE)),$(if $(CONTAINED),gpu-24g,cpu))
override MODEL := $(strip $(MODEL))
override RUNTIME := $(or $(strip $(RUNTIME)),$(CONTAINED),local)
override BUILD := $(strip $(BUILD))
override SET := $(strip $(SET) $(if $(strip $(PORT)),serve.port=$(strip $(PORT))) $(if $(strip $(ENGINE)),serve.engine=$(strip $(ENGINE))) \
  $(if $(strip $(DETERMINISTIC)),determinism=$(strip $(DETERMINISTIC))) $(if $(strip $(LANG_DOC)),report.language=$(strip $(LANG_DOC))))

# Where stages run in containers, the host needs no PyTorch.
VENV := $(if $(filter local,$(RUNTIME)),.venv,.venv-host)
INSTALLED := $(VENV)/installed $(if $(filter local,$(RUNTIME)),$(if $(filter gpu-% multi-%,$(PROFILE)),.venv-cuda/installed))
empty :=
space := $(empty) $(empty)
STATE := $(subst $(space),\$(space),$(BUILD)/$(SCENARIO)/$(PROFILE)/.state)
TEMPER := $(VENV)/bin/python -m temper
export PYTHONPATH := scripts
export TEMPER_BUILD := $(BUILD)
export WAIT := $(strip $(WAIT))
export BASE_IMAGE := $(strip $(BASE_IMAGE))
quoted = '$(subst ','\'',$1)'
ARGS = --scenario $(call quoted,$(SCENARIO)) --profile $(call quoted,$(PROFILE)) --model $(call quoted,$(MODEL)) --set $(call quoted,$(SET)) \
  --runtime $(call quoted,$(RUNTIME))

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
.PHONY: install image model data train merge verify sign reproduce nix-inputs
install: $(INSTALLED)  ## the Python environment in .venv, from hash-locked lists; EXTRA=ray, track, lm-eval, sign
	@$(if $(strip $(EXTRA)),bash scripts/llamafactory/install_llamafactory.sh --$(strip $(EXTRA)))

image: .venv-host/installed  ## the pinned images, built without network and compared with docker/images.lock; IMAGE=, PIN=1
	@.venv-host/bin/python -m temper.images make $(if $(strip $(PIN)),--pin) --runtime $(call quoted,$(RUNTIME)) $(IMAGE)

model: $(STATE)/model.done  ## the base model, fetched and checked
data: $(STATE)/data.done    ## the rows, checked, cleaned, split and counted; report.html shows them
train: $(STATE)/train.done  ## an adapter, by LLaMA Factory
merge: $(STATE)/merge.done  ## the merged model, past the gate

verify: $(VENV)/installed  ## hash every result again and compare with its manifest; KEY=: the signatures too
	@$(TEMPER) verify $(ARGS) --key $(call quoted,$(strip $(KEY)))

sign: .venv/installed  ## sign every result's provenance and the model with an offline key: make sign KEY=key.pem
	@.venv/bin/python -m temper sign $(ARGS) --key $(call quoted,$(strip $(KEY)))

reproduce: $(VENV)/installed  ## build it again and compare every digest; MANIFEST=: with one from elsewhere
	@$(TEMPER) reproduce $(ARGS) --manifest $(call quoted,$(strip $(MANIFEST)))

nix-inputs: .venv-host/installed  ## what nix/ builds from, put into the Nix store by sha256; PARTS=1: the parts of the image too
	@.venv-host/bin/python -m temper nix_inputs $(ARGS) $(if $(strip $(PARTS)),--parts)

##@ Is it better?
.PHONY: eval report compare table webui tensorboard
eval: $(STATE)/$(if $(strip $(TASKS)),merge,eval).done  ## ask base and tuned model, score, pass or fail; TASKS=a,b: lm-evaluation-harness
	@$(if $(strip $(TASKS)),.venv/bin/python -m temper harness $(ARGS) --tasks $(call quoted,$(strip $(TASKS))) \
	  --task_path $(call quoted,$(strip $(TASK_PATH))) $(if $(strip $(LIMIT)),--limit $(LIMIT)),$(TEMPER) gate $(ARGS))

report: $(STATE)/report.done  ## one page to decide by: report.html, metrics.json and the model card; LANG_DOC=zh
	@echo 'report  $(BUILD)/$(SCENARIO)/$(PROFILE)/report/report.html'

webui: $(STATE)/data.done .venv/installed  ## LLaMA Board with the scenario's settings filled in, on loopback; PORT=7860
	@.venv/bin/python -m temper webui $(ARGS) --port $(or $(strip $(PORT)),7860)

tensorboard: .venv/installed  ## TensorBoard on loopback, after train.report_to: tensorboard; PORT=6006
	@.venv/bin/python -m temper tensorboard $(ARGS) --port $(or $(strip $(PORT)),6006)

compare: .venv/installed  ## two runs side by side: make compare A=customer-service/cpu B=build-2/customer-service/cpu
	@$(TEMPER) compare --a $(call quoted,$(strip $(A))) --b $(call quoted,$(strip $(B)))

table: .venv/installed  ## the READMEs' table of scenarios, from the reports that are there
	@$(TEMPER) table

##@ Use it
.PHONY: serve ask stop bench logs status
serve: $(STATE)/merge.done  ## an HTTP endpoint with TGI's API, on loopback, ready once the golden answers agree
	@$(TEMPER) serve $(ARGS)

ask: $(VENV)/installed  ## ask the running server: make ask Q='How long is the return window?'
	@$(TEMPER) ask $(ARGS) --question $(call quoted,$(Q))

stop: $(VENV)/installed  ## stop the server
	@$(TEMPER) stop $(ARGS)

bench: .venv/installed  ## time to first token and tokens per second of any server: make bench BENCH='--url vllm=http://…'
	@.venv/bin/python scripts/bench/serve.py --out $(call quoted,$(BUILD)/$(SCENARIO)/$(PROFILE)/bench) $(BENCH)

logs: $(VENV)/installed  ## the server's log
	@$(TEMPER) logs $(ARGS)

status: $(VENV)/installed  ## what is made, and whether the server runs
	@$(TEMPER) status $(ARGS)

##@ Work on Temper
.PHONY: test golden check lock pin bench-train bench-data bench-merge bench-bits bench-image bench-graph clean
test: .venv/installed-dev  ## everything that proves the repository: T=tests/graph for one folder
	@.venv/bin/python -m pytest $(or $(T),tests)

golden: .venv/installed-dev  ## train the quickstart again and record its digests and losses, which make test compares with
	@.venv/bin/python -m pytest tests/quickstart/test_quickstart_golden.py --record

check: .venv/installed-dev  ## format, lint and type check
	@.venv/bin/ruff format --check scripts tests nix && .venv/bin/ruff check scripts tests nix && .venv/bin/mypy

lock:  ## resolve every pin anew and show what moved
	@scripts/lock.sh

pin: .venv-host/installed  ## the digest of a served image, looked up and recorded: make pin ENGINE=vllm TAG=v0.11.0
	@.venv-host/bin/python -m temper.images.pin $(call quoted,$(strip $(ENGINE))) $(call quoted,$(strip $(TAG)))

bench-train: .venv/installed  ## tokens per CPU second against LLaMA Factory's defaults
	@.venv/bin/python scripts/bench/train.py $(BENCH)

bench-data: .venv/installed  ## the data stage on a million rows beside pandas, polars, duckdb and others
	@.venv/bin/python scripts/bench/data.py $(BENCH)

bench-merge: .venv/installed  ## memory and CPU seconds of the merge against llamafactory-cli export and PEFT
	@.venv/bin/python scripts/bench/merge.py $(BENCH)

bench-bits: .venv/installed  ## what weights in 8 bits cost and give: perplexity, golden answers, tokens per second
	@SCENARIO=$(call quoted,$(SCENARIO)) PROFILE=$(call quoted,$(PROFILE)) .venv/bin/python scripts/bench/quantize.py $(BENCH)

bench-image: .venv/installed  ## import times in the container against the local environment
	@.venv/bin/python scripts/bench/image.py $(BENCH)

bench-graph: .venv/installed  ## a make with nothing to do against DVC and Snakemake
	@.venv/bin/python scripts/bench/graph.py $(BENCH)

clean:  ## delete what was made for SCENARIO and PROFILE; ALL=1: everything, .venv too
	@$(if $(wildcard $(VENV)/bin/python),$(TEMPER) clean $(ARGS),rm -rf '$(BUILD)/$(SCENARIO)/$(PROFILE)')
	@$(if $(ALL),rm -rf '$(BUILD)' .venv .venv-cuda .venv-host)

# The environments. The lock's digest stands in the file, so a changed lock installs and an untouched one does not.
.venv/installed: docker/locks/cpu.txt
.venv-cuda/installed: docker/locks/cuda.txt
.venv-host/installed: docker/locks/host.txt
.venv/installed .venv-cuda/installed .venv-host/installed: scripts/llamafactory/install_llamafactory.sh
	@sha256sum --status -c $@ 2>/dev/null && touch $@ || \
	  bash scripts/llamafactory/install_llamafactory.sh $(patsubst .venv%,-%,$(filter-out .venv,$(@D)))
.venv/installed-dev: docker/locks/dev.txt .venv/installed
	@bash scripts/llamafactory/install_llamafactory.sh --dev

# The graph. A stage's .paths names what it reads and has written, its .list holds their ctime, size and inode as they
# were when it was last found current. Where the two differ, the list is deleted, which is all Make looks at; the stage
# then compares digests, and runs its body only if they differ. docs/decisions/0001 says why not mtimes alone.
STAGES := model data train merge $(if $(filter eval report,$(MAKECMDGOALS)),eval report)
.PHONY: FORCE
$(STAGES:%=$(STATE)/%.list) &: FORCE | $(INSTALLED)
	@scenario='$(SCENARIO)' profile='$(PROFILE)' state='$(BUILD)/$(SCENARIO)/$(PROFILE)/.state' stages=($(STAGES)) look=($(TEMPER) look $(ARGS)) \
	  asked='$(subst ','\'',$(RUNTIME) $(MODEL) $(SET))'; . scripts/stale.sh

define stage  # $1: the stage, $2: the stages before it
$(STATE)/$1.done: $(STATE)/$1.list $(2:%=$(STATE)/%.done) | $(INSTALLED)
	@$(TEMPER) stage $1 $(ARGS)
	@touch '$$@'
endef
$(eval $(call stage,model,))
$(eval $(call stage,data,model))
$(eval $(call stage,train,data))
$(eval $(call stage,merge,train))
$(eval $(call stage,eval,merge))
$(eval $(call stage,report,eval))
