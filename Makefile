# make repro: the default run.  make lint test: what a contributor runs.  make test-end-to-end: before a change of stages is shared.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first command on PATH that a DVC stage calls `python` must be the environment's, and the library the one that lies here.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)/src"

.PHONY: setup git repro scan export audit report costs params test test-end-to-end test-slow fuzz suite suite-table suite-curves \
	suite-sheet board board-plan board-page lint bench api dist clean clean-scratch

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: python: %d.%d given, allowed: 3.11 or newer" % sys.version_info[:2] \
		if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# A variable's value as it was given, for the shell: neither make nor the shell takes any character of it for its own.
quoted = '$(subst ','\'',$(value $(1)))'
# The value of a variable that is 0 or 1.
switch = $(if $(filter-out 0 1,$($(1))),$(error $(1): '$($(1))' given, allowed: 0 or 1))$($(1))

# DVC works in Git repositories alone. Said before anything is installed.
git:
	@git --version >/dev/null 2>&1 || { echo "error: git: not found, allowed: git on PATH" >&2; exit 1; }
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "error: $(CURDIR): no Git repository, allowed: a clone, or \`git init\` \
here first" >&2; exit 1; }

repro: git setup
	$(RUN) dvc repro
	@$(MAKE) --no-print-directory costs
	@echo "report:  reports/index.html"
	@echo "summary: reports/summary.md"
	@echo "metrics: reports/metrics.json"

# Looks for planted samples in a folder or archive of images of unknown origin. TRUSTED: trusted images of the same classes; PLAN=1: only
# says what it would do; CANARY=0: without canaries.
scan: git setup
	@$(RUN) python -m unpoison.scan run $(if $(TRUSTED),--trusted=$(call quoted,TRUSTED)) \
		$(if $(filter 1,$(call switch,PLAN)),--plan) $(if $(filter 0,$(call switch,CANARY)),--without-canary) -- $(call quoted,DATA)

# The scanned set without what reports/removed.txt names, in TO: a new folder, or a new .zip. FORM=link: hard links instead of copies.
export: git setup
	@$(RUN) python -m unpoison.scan export $(if $(FORM),--form=$(call quoted,FORM)) -- $(call quoted,DATA) $(call quoted,TO)

# Grades and shows what there is, after a part of the pipeline (`dvc exp run detect`).
report: setup
	$(RUN) python stages/stamp_test.py
	$(RUN) python stages/evaluate.py
	$(RUN) python stages/report.py

# Seconds and memory of every stage, from its last run here.
costs: setup
	@$(RUN) python -m unpoison.reporting.costs .unpoison/costs

# The methods' own parameters, from their signatures.
params: setup
	$(RUN) python stages/method_params.py

# One thread per worker: two pools of threads on the same cores wait for each other. Files in the order of tests/conftest.py: with the
# longest at the end one worker would be left alone with it.
PYTEST := $(RUN) OMP_NUM_THREADS=1 pytest -n auto --dist loadfile --no-loadscope-reorder
test: setup
	$(PYTEST) -m 'not slow and not gpu and not end_to_end'

# Stages, DVC, several processes and whole trainings from end to end. CI runs both.
test-end-to-end: setup
	$(PYTEST) -m 'not slow and not gpu and end_to_end'

# One published table. SCALE: the suite's first if not given; DATA=folder or archive of images; EXPERIMENTS="badnets
# blended-0.1": only these; JOBS=4: so many runs at a time; FRESH=1: everything again.
suite: git setup
	@$(RUN) python -m unpoison.suites run "$(SUITE)" $(if $(SCALE),--scale "$(SCALE)") $(if $(DATA),--data "$(DATA)") \
		$(if $(EXPERIMENTS),--experiments $(EXPERIMENTS)) $(if $(JOBS),--jobs "$(JOBS)") $(if $(filter 1,$(FRESH)),--fresh)

# Every method against every attack. SCALE: the board's first if not given; DATA="CIFAR-10=cifar10.tar.xz": a folder or archive for a
# data set; MOST=5: at most so many runs; JOBS=4: so many at a time. board-plan lists the runs, board-page writes the page from the records alone.
board: git setup
	@$(RUN) python -m unpoison.board make $(if $(SCALE),--scale "$(SCALE)") $(if $(DATA),--data "$(DATA)") $(if $(MOST),--most "$(MOST)") \
		$(if $(JOBS),--jobs "$(JOBS)")

board-plan board-page: git setup
	@$(RUN) python -m unpoison.board $(@:board-%=%) $(if $(SCALE),--scale "$(SCALE)")

# A checkpoint from elsewhere and a few images in folders of classes. NETWORK, IMAGE_SIZE, MEAN, STD, CLASSES, TRUSTED: docs/audit.md.
audit: git setup
	@$(RUN) python -m unpoison.audit --model=$(call quoted,MODEL) --data=$(call quoted,DATA) --network=$(call quoted,NETWORK) \
		--image-size=$(call quoted,IMAGE_SIZE) --mean=$(call quoted,MEAN) --std=$(call quoted,STD) \
		--classes=$(call quoted,CLASSES) --trusted=$(call quoted,TRUSTED)

suite-table: git setup
	@$(RUN) python -m unpoison.suites table "$(SUITE)"

# A picture of ACC and ASR against what a suite varies.
suite-curves: git setup
	@$(RUN) python -m unpoison.suites curves "$(SUITE)"

# A picture of every trigger of a suite; EXPERIMENTS="badnets sig": only these.
suite-sheet: setup
	@$(RUN) python -m unpoison.suites sheet "$(SUITE)" $(if $(SCALE),--scale "$(SCALE)") $(if $(DATA),--data "$(DATA)") \
		$(if $(EXPERIMENTS),--experiments $(EXPERIMENTS))

test-slow: setup
	$(RUN) pytest -m slow

# Mutated files at every reader, for MINUTES in all; READERS="NAME ...": only these. Findings: .unpoison/fuzz.
fuzz: setup
	$(RUN) PYTHONPATH="$(CURDIR)/src:$(CURDIR)/tests:$(CURDIR)/stages" OMP_NUM_THREADS=1 python -m hostile.fuzz --minutes $(or $(MINUTES),5) \
		$(if $(READERS),--readers $(READERS)) $(if $(SEED),--seed $(SEED))

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# Ratios of one run each: the training core, the detectors that are dear, the sampler. About five minutes on two idle cores.
bench: setup
	$(RUN) python bench/training.py
	$(RUN) python bench/detection.py
	$(RUN) python bench/purification.py
	$(RUN) python bench/attacks_in_training.py
	$(RUN) python bench/sampler.py

# Pages of every module from the docstrings, with a search, in build/api; needs the extra: pip install -e '.[docs]'.
api: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH}" python bench/api_pages.py build/api

# The sdist and the wheel in dist/, and the examples of docs/library.md from the wheel in a fresh environment; needs the extra:
# pip install -e '.[release]'. OFFLINE=1: what the package depends on is that of .venv.
dist: git setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" python bench/dist.py dist $(if $(filter 1,$(call switch,OFFLINE)),--offline)

# Unfinished and reusable work of no run that goes on now: variations, assets, checkpoints. It is made again where it is needed.
clean-scratch: setup
	@$(RUN) python -m unpoison.core.scratch "$${UNPOISON_SCRATCH:-.unpoison}"

clean:
	rm -rf $(VENV) .unpoison .pytest_cache .mypy_cache .ruff_cache
