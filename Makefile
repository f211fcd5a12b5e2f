# Every command of the project. Settings follow ARGS: make train-ppo ARGS="env.num_envs=4 optim.lr=1e-4"
.DEFAULT_GOAL := help
.PHONY: help setup doctor demos pretrain train-sft train-stage train-ppo train-grpo train-tpo evaluate tensorboard test check format benchmark clean learning-curve sft-scaling study generalization gallery export memory benchmark-policy benchmark-storage benchmark-reading replay import-demos export-demos check-lerobot

# A setting given as a variable of make, or a variable to a target that does not read it, would be dropped without a word.
READS_N := demos
READS_FROM := import-demos
READS_SOURCE := import-demos
READS_OUT := export export-demos
READS_CKPT := evaluate generalization export
READS_AGAINST := evaluate generalization
READS_FIG := study
READS_CONF := train-stage train-ppo train-grpo train-tpo learning-curve
READS_PORT := tensorboard
READS_LEROBOT := check-lerobot
READS_ARGS := any $(filter-out help setup doctor tensorboard check format clean check-lerobot,$(MAKECMDGOALS))
READS_PYTHON := $(MAKECMDGOALS)
$(foreach v,$(filter-out MAKE%,$(.VARIABLES)),$(if $(filter command,$(firstword $(origin $v))),$(if $(READS_$v),\
	$(foreach goal,$(filter-out $(READS_$v),$(MAKECMDGOALS)),$(error make $(goal) does not read $v; see make help)),$(error \
	$v=... is no variable of this Makefile; settings follow ARGS: make $(MAKECMDGOALS) ARGS="$v=$($v)"))))

# One that happens to be in the environment is not meant for this.
$(foreach v,N FROM SOURCE OUT CKPT AGAINST FIG CONF ARGS,$(if $(filter environment,$(origin $v)),$(eval $v :=)))

PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
LEROBOT ?= .venv-lerobot/bin/python
PORT ?= 6006

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Settings: ARGS="key=value ..." (every key is explained in conf/base.yaml)'

setup:  ## Install everything into .venv, and the Vulkan driver the simulator draws with
	@scripts/setup.sh

$(INSTALLED): setup.cfg scripts/setup.sh
	@scripts/setup.sh

doctor: $(INSTALLED)  ## Check this machine and say in plain words what is missing
	@$(PYTHON) -m vlapost.doctor

demos: $(INSTALLED)  ## Collect demonstrations with the motion planner: N=64000
	@$(PYTHON) -m vlapost.collect_demos $(if $(N),demos.episodes=$(N)) $(ARGS)

replay: $(INSTALLED)  ## How many demonstrations succeed again open loop: all actions, small ones merged, dropped
	@$(PYTHON) -m vlapost.replay $(ARGS)

import-demos: $(INSTALLED)  ## Demonstrations from elsewhere: FROM=lerobot|rlds|maniskill|npz|vlapost|actor SOURCE=...
	@$(PYTHON) -m vlapost.import_demos $(if $(FROM),from=$(FROM)) $(if $(SOURCE),source=$(SOURCE)) $(ARGS)

export-demos: $(INSTALLED)  ## Demonstrations as a LeRobotDataset v3: OUT=new folder
	@$(PYTHON) -m vlapost.export_demos $(if $(OUT),out=$(OUT)) $(ARGS)

pretrain: $(INSTALLED)  ## Pretrain the small model
	@$(PYTHON) -m vlapost.pretrain $(ARGS)

train-sft: $(INSTALLED)  ## Supervised fine-tuning on demonstrations
	@$(PYTHON) -m vlapost.train sft $(ARGS)

train-stage: $(INSTALLED)  ## One stage alone, or some iterations more of it: CONF=ppo ARGS="run=... policy.adapter=..."
	@$(PYTHON) -m vlapost.train $(CONF) $(ARGS)

train-ppo: $(INSTALLED)  ## Reinforcement learning with PPO, with all stages before it
	@$(PYTHON) -m vlapost.recipe $(or $(CONF),ppo) $(ARGS)

train-grpo: $(INSTALLED)  ## The same with GRPO: no critic, groups of episodes from the same start
	@$(PYTHON) -m vlapost.recipe $(or $(CONF),grpo) $(ARGS)

train-tpo: $(INSTALLED)  ## The same with TPO: preferences between whole episodes
	@$(PYTHON) -m vlapost.recipe $(or $(CONF),tpo) $(ARGS)

learning-curve: $(INSTALLED)  ## RL for 400,000 steps, evaluated on seen and unseen objects (hours; resumable)
	@$(PYTHON) -m vlapost.curve $(CONF) $(ARGS)

sft-scaling: $(INSTALLED)  ## SFT on 140 to 16,000 demonstrations, on seen and unseen objects (hours; resumable)
	@$(PYTHON) -m vlapost.scaling $(ARGS)

study: $(INSTALLED)  ## An ablation of the paper in small, over seeds: FIG=3b, 4b, 5a, 5b, 10, 11 or 12
	@$(PYTHON) -m vlapost.study $(FIG) $(ARGS)

evaluate: $(INSTALLED)  ## Success on the held-out episodes: CKPT=adapter [AGAINST=folder of another result]
	@$(PYTHON) -m vlapost.evaluate $(if $(CKPT),policy.adapter=$(CKPT)) $(if $(AGAINST),against=$(AGAINST)) $(ARGS)

generalization: $(INSTALLED)  ## All 16 setups of the benchmark: CKPT=adapter [AGAINST=folder of another result]
	@$(PYTHON) -m vlapost.generalization $(if $(CKPT),policy.adapter=$(CKPT)) $(if $(AGAINST),against=$(AGAINST)) $(ARGS)

export: $(INSTALLED)  ## Merge an adapter into its base, in OpenVLA's layout: CKPT=adapter OUT=new folder
	@$(PYTHON) -m vlapost.export $(if $(CKPT),policy.adapter=$(CKPT)) $(if $(OUT),out=$(OUT)) $(ARGS)

memory: $(INSTALLED)  ## What a stage needs in memory, by arithmetic: ARGS="sft policy.checkpoint=openvla/openvla-7b"
	@$(PYTHON) -m vlapost.memory $(ARGS)

gallery: $(INSTALLED)  ## Pictures of every setup and asset: ARGS="env.assets=paper"
	@$(PYTHON) -m vlapost.gallery $(ARGS)

tensorboard: $(INSTALLED)  ## Curves and videos in the browser, on port 6006 or PORT=...
	@$(PYTHON) scripts/tensorboard.py $(PORT)

test: $(INSTALLED)  ## All tests
	@$(PYTHON) -m pytest $(ARGS)

.venv-lerobot/bin/python:
	@echo "installing lerobot into .venv-lerobot (8 GB)"
	@$(PYTHON) -m venv .venv-lerobot
	@$@ -m pip install -q --disable-pip-version-check lerobot==0.4.4 || { rm -r .venv-lerobot; false; }

check-lerobot: $(INSTALLED) $(LEROBOT)  ## The real lerobot package opens our export and trains on it (own environment)
	@LEROBOT_PYTHON=$(LEROBOT) $(PYTHON) -m pytest tests/test_lerobot.py -k real -p no:cacheprovider

check: $(INSTALLED)  ## Formatting, lint, types, layers and lengths of files; changes nothing
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy
	@$(PYTHON) -m pytest tests/test_layers.py

format: $(INSTALLED)  ## Format the code and mend what lint can mend
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

benchmark: $(INSTALLED)  ## Speed of simulator, rollouts and learning on this machine
	@$(PYTHON) -m benchmarks.run $(ARGS)

benchmark-policy: $(INSTALLED)  ## Speed and memory of the policy alone, random weights: ARGS="out=FILE.json"
	@$(PYTHON) -m benchmarks.policy $(ARGS)

benchmark-storage: $(INSTALLED)  ## Size, write and read speed of demonstrations in our format and in others
	@$(PYTHON) -m benchmarks.storage $(ARGS)

benchmark-reading: $(INSTALLED)  ## Shuffled reading of many demonstrations, and the memory it takes
	@$(PYTHON) -m benchmarks.reading $(ARGS)

clean:  ## Remove caches (data/, models/, lightning_logs/ and .venv stay)
	@rm -rf .pytest_cache .mypy_cache .ruff_cache build
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
