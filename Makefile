# `make demo` and `make test` set up everything they need in .venv; later calls reuse it.
PYTHON ?= python3
VENV   := .venv
CONSTRAINTS ?= constraints.txt
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

.PHONY: setup demo clean-demo real test test-long lint types coverage mutants campaign fuzz docs

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or later is needed; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -r requirements-dev.txt -c $(CONSTRAINTS)
	@touch $@

# The demo writes only to demo/; data/, checkpoints/ and results/ are never touched. Each step resumes an interrupted
# call and skips what is finished.
DEMO := demo
demo: $(READY)
	@echo '[1/4] drawing a corpus in the layouts of the releases'
	@$(PY) -m data_prep demo --out $(DEMO)/releases --train 3000 --valid 200 --test 200
	@echo '[2/4] building the training, validation and test sets from it'
	@$(PY) -m data_prep build --data_root $(DEMO)/releases --out $(DEMO)/data --splits $(DEMO)/splits \
		--audit_copies 90 --audit_unrelated 200
	@echo '[3/4] training a small DINOv3 and a small text encoder from scratch'
	@$(PY) run_train.py --config configs/demo.yaml --cxr_filepath $(DEMO)/data/cxr.h5 \
		--txt_filepath $(DEMO)/data/impressions.csv --save_dir $(DEMO)/checkpoints --resume auto
	@echo '[4/4] evaluating the selected checkpoint'
	@$(PY) run_zero_shot.py --run $(DEMO)/checkpoints/demo --data $(DEMO)/data --splits $(DEMO)/splits --out $(DEMO)/results
	@echo 'The report (drawn corpus, not a clinical result): $(abspath $(DEMO)/results/demo/report.html)'

# Real radiographs without credentials: Open-i from NLM (1.4 GB; `make real YES=--yes` does not ask,
# FROM="--from FOLDER" uses local files; BUILD, TRAIN and EVALUATE add flags to their steps). Trains a ViT-B on a GPU, else a ViT-S whose
# tower is frozen, or the demo's model if no weights can be downloaded.
REAL := real
DINOV3_S := timm/vit_small_patch16_dinov3.lvd1689m
real: $(READY)
	@echo '[1/4] Open-i from the National Library of Medicine'
	@$(PY) -m data_prep download openi --out $(REAL)/openi $(YES) $(FROM)
	@echo '[2/4] building the sets, split by patient, with labels from MeSH'
	@$(PY) -m data_prep build --openi $(REAL)/openi --roles openi --out $(REAL)/data --splits $(REAL)/splits \
		--test_views all --audit_copies 90 --audit_unrelated 200 $(BUILD)
	@echo '[3/4] training'
	@config=small; \
	if $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then config=gpu; \
	elif $(VENV)/bin/hf download $(DINOV3_S) model.safetensors > /dev/null 2>&1; then config=cpu; \
	else echo 'no weights can be downloaded, so the small model of the demo is trained'; fi; \
	$(PY) run_train.py --config configs/real_$$config.yaml --cxr_filepath $(REAL)/data/cxr.h5 \
		--txt_filepath $(REAL)/data/impressions.csv --save_dir $(REAL)/checkpoints --resume auto $(TRAIN)
	@echo '[4/4] evaluating the selected checkpoint, by study: the view of an image is not known'
	@$(PY) run_zero_shot.py --run $(REAL)/checkpoints/real --data $(REAL)/data --splits $(REAL)/splits --out $(REAL)/results \
		--level study_mean $(EVALUATE)
	@echo 'The report: $(abspath $(REAL)/results/real/report.html)'

clean-demo:
	rm -rf $(DEMO)

# With bytecode, whatever the environment says: the processes that tests start would compile every module again.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "not long and not gpu"

test-long: $(READY)
	$(PY) -m pytest -m long

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(READY)
	$(PY) -m mypy

# Branch coverage of the packages; build/coverage/index.html shows every line.
coverage: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "not long and not gpu" --cov --cov-report=term --cov-report=html

# Changes one operator at a time in core modules and counts how many changes the tests detect (about an hour).
mutants: $(READY)
	$(PY) -m tests.mutants --changes 100

# Reads damaged files of every format and prints counts; exit code 1 for a traceback, a crash or a silent change.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m tests.fuzz --files 10000 --seed 1

# Kills, interrupts and starves every command about 1,500 times (hours; a second call resumes where the first stopped).
campaign: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m tests.campaign

docs: $(READY)
	$(PY) -m pdoc -o build/api chexzero data_prep dinov3_adapter run_train run_zero_shot
