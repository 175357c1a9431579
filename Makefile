# make demo   install into .venv, make a real problem in a disposable container, diagnose and cure it
# make test   install what the tests need and run them all: pure, live on this kernel, in a VM

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNEL ?= 6.1
APT := apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300
PYTEST := $(BIN)/python -m pytest
# Where a plain shell of root's may not look for what packages bring.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
# Real kernels on a busy or emulated machine stall now and then: what failed is tried once more, and
# how it failed is printed at the end.
AGAIN := --reruns 1
# What a lab or a reader needs and does not find is then a failure, not a skip.
LIVE := WHYBOX_LIVE=1

.PHONY: help compiled demo test check pure live vm traces kernels proof bench bpf format clean packages

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: compiled ## make a problem in a disposable container, diagnose it, cure it (root)
	@$(BIN)/whybox lab run cpu/throttled
	@echo "Now your own: $(BIN)/whybox ps, then $(BIN)/whybox diagnose NAME"

test: check pure live vm ## everything: static checks, pure, live and VM tests (root)

check: $(VENV)/tested ## ruff and mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

pure: $(VENV)/tested bpf ## tests without a kernel, and the doctests: seconds
	$(PYTEST) -q tests/pure src

live: $(VENV)/tested compiled bpf packages ## readers, labs and real Docker on this host's kernel (root)
	$(LIVE) $(PYTEST) -q $(AGAIN) tests/live

# Emulated, a machine is ten times as slow, and uses one CPU and a half: two of them share the labs,
# and what is about CPUs runs alone. They run what a kernel decides: the labs, real containers, and
# of the traces those that stand for the ways of looking. All of these: make traces; anything else:
# make vm VMTESTS=tests/live
TRACES := tests/live/test_bpf.py $(filter-out %trouble.py,$(wildcard tests/live/test_trace_*.py))
DOCKER := tests/live/test_docker_cases.py tests/live/test_docker_killed_on_stop.py
SOME := $(addprefix tests/live/test_,bpf.py trace_signals.py trace_runqueue.py trace_exec.py)
LABS := tests/live/test_labs.py
VM := $(BIN)/python -m vm $(KERNEL) --timeout 3300 --
INSIDE := python3 -m pytest -q $(AGAIN) --timeout 300

ifdef VMTESTS
vm: $(VENV)/tested bpf
	$(VM) $(INSIDE) $(VMTESTS)
else
vm: $(VENV)/tested bpf ## labs, Docker and traces on another kernel: make vm KERNEL=6.1
	$(VM) true  # what all need is made once
	$(VM) $(INSIDE) $(LABS) -k "process or memory or security" > $(VENV)/vm.log 2>&1 & other=$$!; \
	  $(VM) $(INSIDE) $(LABS) -k "storage or network"; \
	  status=$$?; wait $$other || status=$$?; cat $(VENV)/vm.log; exit $$status
	$(VM) sh -c '$(INSIDE) $(LABS) -k cpu && $(INSIDE) $(DOCKER) $(SOME)'
endif

# One BPF object for all kernels. Ten minutes each, so not a part of make test; make kernels runs
# the same and writes down what came of it.
KERNELS ?= 5.10 6.1 6.12 7.3

traces: $(VENV)/tested bpf ## every trace on the VM kernels: make traces KERNELS=5.10
	for kernel in $(KERNELS); do $(BIN)/python -m vm $$kernel --timeout 900 -- \
	  python3 -m pytest -q --timeout 300 $(TRACES) || exit; done

# One object for all of them: every BPF program on every kernel that can be booted here.
kernels: $(VENV)/tested bpf packages ## run every BPF program on every kernel, write docs/kernels.md
	$(BIN)/python -m tests.kernels $(QUICK)

proof: $(VENV)/tested bpf packages ## prove every case here and in the VM, write docs/proof.md
	$(BIN)/python -m tests.proof

bench: $(VENV)/tested compiled bpf packages ## ratios against peers and against the limit
	$(BIN)/python -m bench

# Python may be told not to keep what it compiles (PYTHONDONTWRITEBYTECODE): each start would then
# compile all of whybox anew, and that takes longer than a diagnosis.
compiled: $(VENV)/installed
	@$(BIN)/python -m compileall -q src

bpf: $(VENV)/tested ## compile the BPF programs that have changed
	$(BIN)/python hatch_build.py

packages: $(VENV)/tested
	$(BIN)/python -m tests.live.packages

format: $(VENV)/tested ## write the code in the one form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what make has made here
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Debian's python3 comes without ensurepip; a pyenv or a container's python has it.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "whybox needs Python 3.11 or newer: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update -q && $(APT) python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U pip

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/tested: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e '.[dev]'
	@touch $@ $(VENV)/installed
