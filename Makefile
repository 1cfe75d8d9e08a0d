# make quickstart   environment, main job, three stories
# make install      only the environment (.venv)
# make test         what a change can break at once (under 4 minutes)    make test-all   the whole suite (under 30)
# make check        lint, format, types, architecture
# make test-faults  everything that can go wrong, and whether it goes as docs/reliability.md promises; NVMe (15 minutes)
# make bench        the mixture layer against its peers and its limit
# make test-gpu     tests and certify on one CUDA card            make bench-gpu   kernels, a real run, a profile there
# make test-browser   the report in Chromium
# make test-multinode   two nodes on this machine, over ssh      make test-slurm   likewise, under Slurm

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUT ?= runs/quickstart
comma := ,
# DeepSpeed has builds for Linux only; elsewhere the same preset trains on one device.
EXTRAS := $(if $(filter Linux,$(shell uname -s)),deepspeed$(comma))wandb,tensorboard,mlflow,hub,sweep,fast,gguf,clean,cluster,evaluate,atlas,test

.PHONY: quickstart install test test-all check bench test-gpu bench-gpu test-faults test-browser test-multinode test-slurm
.DELETE_ON_ERROR:

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh launch/install.sh $(VENV) "$(EXTRAS)"
	@touch $@

quickstart: $(INSTALLED)
	@OUT="$(OUT)" BIN="$(BIN)" sh launch/quickstart.sh

# A worker for each core; tests/conftest.py says which tests are quick.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal --durations 20

test: $(INSTALLED)
	$(PYTEST) -m quick

test-all: $(INSTALLED)
	$(PYTEST)

FAULTS := tests/faults/test_faults.py tests/fuzz tests/distributed/test_supervision.py \
	tests/distributed/test_interruption.py tests/distributed/test_nvme.py

# -m "": also the many that `make test` leaves out. The table comes whether they pass or not.
test-faults: $(INSTALLED)
	@mkdir -p build
	$(BIN)/python -m pytest $(FAULTS) -m "" --junitxml=build/faults.xml; code=$$?; \
	$(BIN)/python tests/faults/table.py build/faults.xml docs/reliability.md && exit $$code

test-browser: $(INSTALLED)
	@sh tests/browser/install.sh
	$(BIN)/python -m pytest tests/browser

# They install sshd and pdsh, or Slurm, where these are missing (Debian and Ubuntu).
test-multinode: $(INSTALLED)
	@sh tests/multinode/install.sh ssh
	$(BIN)/python -m pytest tests/multinode -m "not slurm"

test-slurm: $(INSTALLED)
	@sh tests/multinode/install.sh slurm
	$(BIN)/python -m pytest tests/multinode -m slurm

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Without installation, too: a machine with a card often has a torch of its own (PYTHON=python3 make test-gpu).
test-gpu:
	sh launch/gpu_check.sh --parts environment,tests,parity,presets,certify

bench-gpu:
	sh launch/gpu_check.sh --parts environment,kernels,training,decoding

bench: $(INSTALLED)
	$(BIN)/python benchmarks/operations/run.py --suite cpu
