# pykvm. `make demo` and `make test` do all their own set-up on a machine that has python3 and gcc.
# `make help` lists the targets.

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Debian package -> a test that what it brings is there; only what is missing gets installed
NEEDS := python3-venv='$(PYTHON) -c "import ensurepip"' \
	python3-dev='$(PYTHON) -c "import os,sysconfig as s;os.stat(s.get_path(\"include\")+\"/Python.h\")"' \
	gcc='gcc --version' libc6-dev='test -e /usr/include/linux/kvm.h'
# the extension, the guests and the firmware are made again when one of these changes
BUILT_FROM := pyproject.toml pykvm/_build.py pykvm/toolchain.py pykvm/ioctls.py pykvm/kvm_api.cdef \
	$(wildcard pykvm/*.c pykvm/*.h) $(shell find guests firmware -type f -not -name '*.md')
READY := $(VENV)/ready

.PHONY: demo test test-unit test-native test-lab test-one lint bench bench-linux bench-containers fuzz guests clean setup help
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make the venv and build pykvm, the guests and the firmware in place

$(READY): $(BUILT_FROM)
	@missing=; for need in $(NEEDS); do \
	    sh -c "$${need#*=}" >/dev/null 2>&1 || missing="$$missing $${need%%=*}"; done; \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing Debian packages:$$missing"; \
	        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	    else echo "pykvm needs packages that are missing; install them: sudo apt-get install$$missing" >&2; exit 1; fi; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# compat: a plain path; setuptools' own finder would cost every start of Python a tenth of it
	$(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@

guests: $(READY) ## build the guests and the firmware again
	$(BIN)/python -c 'from pathlib import Path; from pykvm.toolchain import build_all; build_all(Path.cwd(), Path.cwd() / "pykvm/_guests")'

demo: $(READY) ## boot a guest and show what it cost
	$(BIN)/pykvm run 01_hello

test: $(READY) ## all tests: here, and the KVM tests again in the labs; one that ran nowhere fails
	PYTHONPATH=tests $(BIN)/python -m harness

test-unit: $(READY) ## tests that need no KVM
	PYTHONPATH=tests $(BIN)/python -m harness --places unit

test-native: $(READY) ## unit tests, and the KVM tests on this machine's own KVM
	PYTHONPATH=tests $(BIN)/python -m harness --places unit,native

test-lab: $(READY) ## the KVM tests in the AMD lab, and in the Intel lab those that only it can run
	PYTHONPATH=tests $(BIN)/python -m harness --places amd,intel

test-one: $(READY) ## one test by T=path[::name] or T='-k word'
	$(BIN)/pytest $(T)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(READY) ## figures, as ratios against a C floor in the same run; LAB=amd or LAB=intel: in that lab
	$(BIN)/python -m tests.bench $(if $(LAB),--quick --lab $(LAB))

bench-linux: $(READY) ## Linux guests beside QEMU's machines, all in the AMD lab; PARTS='linux-boot linux-block' for some
	$(BIN)/python -m tests.bench $(or $(PARTS),linux) --lab amd $(if $(JSON),--json $(JSON))

bench-containers: $(READY) ## containers beside crun and runc in one guest in the AMD lab; QUICK=1, PARTS='guest-starts …' for less
	$(BIN)/python -m tests.bench $(or $(PARTS),containers guest) --lab amd $(if $(QUICK),--quick) $(if $(JSON),--json $(JSON))

fuzz: $(READY) ## hostile drivers against every virtio device, for ten minutes or SECONDS; a case repeats by its seed
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

clean: ## remove everything that was built
	rm -rf $(VENV) build dist pykvm.egg-info pykvm/_guests pykvm/_native*.so pykvm/_native.c
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
