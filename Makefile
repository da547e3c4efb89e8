# Every target makes the environment that it needs: .venv for this package, .venv-comfy for ComfyUI, which wants another torch.
# An environment is renewed when a file that it is made from changes: the name of its stamp holds their checksum.

PYTHON ?= python3
TORCH := torch==2.13.0
TORCH_COMFY := torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0# only a matching set starts

# The first of the folders $(1) that holds a ComfyUI, or nothing.
find_comfyui = $(shell for d in $(1); do if [ -f "$$d/main.py" ] && [ -d "$$d/custom_nodes" ]; then cd "$$d" && pwd; break; fi; done)
COMFYUI := $(call find_comfyui,$(if $(COMFYUI_PATH),"$(COMFYUI_PATH)","$(CURDIR)/../.." "$(HOME)/comfy/ComfyUI"))
COMFYUI_OLDEST := $(call find_comfyui,"$(or $(COMFYUI_OLDEST_PATH),$(HOME)/comfy/ComfyUI-0.8.0)")
ifneq ($(COMFYUI_PATH),)
ifeq ($(COMFYUI),)
$(error COMFYUI_PATH is "$(COMFYUI_PATH)", which holds no ComfyUI)
endif
endif

checksum = $(shell cat $(1) | cksum | cut -d' ' -f1)
SUM := $(call checksum,Makefile pyproject.toml)
READY_COMFY := .venv-comfy/.ready-$(if $(COMFYUI),$(call checksum,Makefile pyproject.toml requirements.txt "$(COMFYUI)/requirements.txt"))

# Some systems ship venv without the pip that it would copy.
make_venv = $(PYTHON) -m venv $(1) || { $(PYTHON) -m venv --without-pip $(1) && $(PYTHON) -m pip --python $(1)/bin/python install pip; }

.DEFAULT_GOAL := help
.PHONY: help demo check test test-fast fuzz comfy clean
.NOTPARALLEL:

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: .venv/.demo-$(SUM) ## sample the bundled tiny model with and without SafeCFG; nothing to download but Python packages
	.venv/bin/python -m hgr demo

check: .venv/.check-$(SUM) $(if $(COMFYUI),$(READY_COMFY)) ## lint and format; types too where there is a ComfyUI, whose own they need
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
ifeq ($(COMFYUI),)
	@echo 'No ComfyUI found: types are not checked.'
else
	PYTHONPATH="$(COMFYUI)" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright --pythonpath .venv-comfy/bin/python
endif

test: check .venv/.test-$(SUM) $(if $(COMFYUI),$(READY_COMFY)) ## check, and every test; those in ComfyUI too, where there is one
	.venv/bin/python tests/run.py "$(COMFYUI)" "$(COMFYUI_OLDEST)"

test-fast: .venv/.test-$(SUM) ## the quick unit tests, in under two minutes
	OMP_NUM_THREADS=1 .venv/bin/pytest tests --ignore=tests/host --ignore=tests/browser -m "not slow" -n auto --dist loadfile

fuzz: .venv/.test-$(SUM) ## damaged and hostile files, 10,000 of each kind or as many as FUZZ says; FUZZ_SEED chooses others
	FUZZ=$(or $(FUZZ),10000) OMP_NUM_THREADS=1 .venv/bin/pytest tests/test_fuzz.py -n auto

ifeq ($(COMFYUI),)
comfy:
	@echo 'No ComfyUI found. Get one with'
	@echo '    git clone https://github.com/comfyanonymous/ComfyUI ~/comfy/ComfyUI'
	@echo 'or name yours: make comfy COMFYUI_PATH=/folder/of/ComfyUI'
	@echo 'Then run this again: it installs what ComfyUI requires into .venv-comfy here, and starts it with this pack.'
	@exit 1
else
comfy: $(READY_COMFY) ## start ComfyUI with this pack; ARGS="..." are passed on
	@for pack in "$(COMFYUI)"/custom_nodes/*; do [ ! "$$pack" -ef . ] || exit 0; done; \
	pack="$(COMFYUI)/custom_nodes/safecfg"; \
	if [ -e "$$pack" ]; then echo "$$pack is another copy of the pack: remove it first."; exit 1; fi; \
	ln -sfn "$(CURDIR)" "$$pack" && echo "Linked this folder as $$pack"
	.venv-comfy/bin/python "$(COMFYUI)/main.py" $(ARGS) \
		$$(.venv-comfy/bin/python -c 'import torch; print("" if torch.accelerator.is_available() else "--cpu")')
endif

clean: ## remove the environments, builds and caches
	rm -rf .venv .venv-comfy build dist safecfg.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# One rule for both uses of .venv: the stem is the extra. torch is pinned because every other package here follows from it.
.venv/.%-$(SUM):
	$(call make_venv,.venv)
	.venv/bin/python -m pip install $(TORCH) -e ".[$*]"
	rm -f .venv/.$*-* && touch $@

$(READY_COMFY):
	$(call make_venv,.venv-comfy)
	.venv-comfy/bin/python -m pip install $(TORCH_COMFY) -r "$(COMFYUI)/requirements.txt" -r requirements.txt -e ".[browser]"
	rm -f .venv-comfy/.ready-* && touch $@
