# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps

DETECTRON2_COMMIT := 02b5c4e295e990042a714712c21dc79b731e8833
# Anything `pip install` takes: a git URL (of a mirror, say), or the folder of a checkout at the commit above.
DETECTRON2 ?= git+https://github.com/facebookresearch/detectron2.git@$(DETECTRON2_COMMIT)

.DELETE_ON_ERROR:
.PHONY: help setup check-detectron2 demo demo-segmentation demo-classification demo-multimodal test test-all browser docs check-cuda sanitize bench tables zoo-check lint format

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMPS)/package ## Virtual environment in .venv, requirements, Detectron2 and this package

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/requirements: requirements.txt requirements-dev.txt constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt lvis  # with them comes a second OpenCV
	@mkdir -p $(STAMPS) && touch $@

# Built against the torch installed above, hence without build isolation; kept when what is there already loads.
$(STAMPS)/detectron2: $(STAMPS)/requirements
	@$(BIN)/python -c "import torch, detectron2._C" 2>/dev/null || { \
	    $(MAKE) --no-print-directory check-detectron2 && \
	    echo "building Detectron2 (a minute or two) ..." && \
	    $(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt "$(DETECTRON2)"; }
	@touch $@

$(STAMPS)/package: $(STAMPS)/detectron2 pyproject.toml setup.py $(wildcard piip_ops/building/*.py piip_ops/csrc/* piip_ops/csrc/*/*)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

check-detectron2: ## Say whether Detectron2's source can be reached
	@case "$(DETECTRON2)" in \
	git+*) url=$$(echo "$(DETECTRON2)" | sed -E 's/^git\+//; s/@[^@/]*$$//'); \
	    GIT_TERMINAL_PROMPT=0 timeout 60 git ls-remote --quiet "$$url" HEAD >/dev/null 2>&1;; \
	*://*) true;; \
	*) test -f "$(DETECTRON2)/setup.py";; \
	esac || { echo "error: Detectron2 cannot be reached at $(DETECTRON2):" \
	    "give a local checkout or a mirror, e.g. make setup DETECTRON2=../detectron2 or" \
	    "make setup DETECTRON2=git+https://HOST/detectron2.git@$(DETECTRON2_COMMIT)" >&2; exit 1; }

DEMO_CONFIG := configs/quick/mask_rcnn_piip_128_96_64_shapes.py

demo: setup ## Train a small PIIP Mask R-CNN on the CPU, evaluate it, draw what it finds
	$(BIN)/python tools/make_shapes.py
	$(BIN)/python tools/lazyconfig_train_net.py --config-file $(DEMO_CONFIG)
	$(BIN)/python tools/compare_results.py --config-file $(DEMO_CONFIG) \
	    --results outputs/demo/coco_instances_results.json --output outputs/demo/pictures
SEGMENTATION_CONFIG := configs/quick/upernet_piip_128_96_64_shapes.py

demo-segmentation: setup ## Train a small PIIP UPerNet on the CPU, evaluate it, draw what it finds
	$(BIN)/python tools/make_shapes.py
	$(BIN)/python tools/lazyconfig_train_net.py --config-file $(SEGMENTATION_CONFIG)
	$(BIN)/python tools/demo.py --config-file $(SEGMENTATION_CONFIG) \
	    --weights outputs/demo-segmentation/model_final.pth --input "$${DETECTRON2_DATASETS:-datasets}/shapes/val" \
	    --output outputs/demo-segmentation/pictures

demo-multimodal: setup ## Train a small PIIP-LLaVA to answer questions about drawn images, and ask it
	$(BIN)/python tools/make_questions.py
	$(BIN)/python tools/train_multimodal.py --config-file configs/multimodal/questions.yaml
	$(BIN)/python tools/ask.py --model outputs/demo-multimodal --template short \
	    --data datasets/questions/val.json --images datasets/questions
	$(BIN)/python tools/ask.py --model outputs/demo-multimodal --template short \
	    --image datasets/questions/val/000000.png "how many discs?" "how many squares?" "how many triangles?"

CLASSIFIER_CONFIG := configs/quick/classifier_piip_96_48_24_patterns.py

demo-classification: setup ## Train a small PIIP classifier on the CPU, evaluate it, draw what it says
	$(BIN)/python tools/make_patterns.py
	$(BIN)/python tools/train_classifier.py --config-file $(CLASSIFIER_CONFIG)
	$(BIN)/python tools/demo.py --config-file $(CLASSIFIER_CONFIG) \
	    --weights outputs/demo-classification/model_final.pth \
	    --input "$${DETECTRON2_DATASETS:-datasets}"/patterns/val/*/0000[0-4]*.png \
	    --output outputs/demo-classification/pictures

# What Detectron2's own imports warn of would drown the lines that matter.
demo demo-segmentation demo-classification demo-multimodal: export PYTHONWARNINGS := ignore

# One process a core and one thread each: most tests are too small for two threads to help them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
test: setup ## The tests, without those marked slow
	$(PYTEST) -m "not slow"

test-all: setup ## All tests
	$(PYTEST)

# Any of these drives the test of the web page; apt-get has the first on Debian.
BROWSERS := chromium chromium-browser google-chrome
browser: ## A Chromium for the test of the web page, installed where apt-get may
	@command -v $(BROWSERS) | grep -q . || { \
	    test "$$(id -u)" = 0 && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || { \
	    echo "error: none of $(BROWSERS) is here: install one, on Debian with apt-get install chromium" >&2; exit 1; }

# Not --quiet, which also silences what --strict counts.
docs: $(STAMPS)/requirements ## The documentation site, in build/site
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=projects/PIIP:. $(BIN)/mkdocs build

check-cuda: setup ## Compile the CUDA sources (with nvcc) and test them in an emulation: no GPU needed
	$(BIN)/python tools/lab/compile_cuda.py --arch 80 90
	PIIP_OPS_DEVICE=emulated-cuda OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto -m "not slow" tests/piip_ops
	tools/gpu_report.sh --dry-run --output build/gpu-report

sanitize: setup ## Run the CPU kernels and the emulated CUDA kernels under the address sanitizer
	tools/sanitize_ops.sh

bench: setup ## Time the attention operator against its plain PyTorch definition
	$(BIN)/python tools/benchmark.py ops

tables: setup docs/latency.json ## Reproduce the published cost tables, count and draw: docs/cost.md
	$(BIN)/python tools/cost_tables.py

LATENCY_CONFIGS := configs/comparison/detectron2_vitdet_b.py $(patsubst %,configs/COCO/mask_rcnn_%_1x.py, \
    vitdet_b_1024 piip_tsb_1120_896_448 piip_tsb_1568_896_448 piip_tsb_1568_1120_672) \
    configs/COCO/vitdet_recipe/mask_rcnn_piip_tsb_1120_896_448_100ep.py

# bfloat16 where the processor has instructions for it: emulated, it takes minutes an image.
LATENCY_PRECISIONS := fp32 $(shell grep -qm1 -E 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null && echo bf16)

# Measured where it is absent only: it takes a quiet machine and some ten minutes of it.
docs/latency.json: | $(STAMPS)/package
	@mkdir -p build
	$(BIN)/python tools/benchmark.py model $(LATENCY_CONFIGS) --onednn-linear piip --optimized --runs 2 \
	    --precision $(LATENCY_PRECISIONS) --format json --output build/latency.json
	mv build/latency.json $@

zoo-check: setup ## Build every config of the model zoo and check its row
	$(BIN)/python tools/model_zoo.py --check

lint: setup ## Format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.cu' '*.cuh' '*.h' | xargs -r $(BIN)/clang-format --dry-run --Werror

format: setup ## Rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	git ls-files '*.cpp' '*.cu' '*.cuh' '*.h' | xargs -r $(BIN)/clang-format -i
