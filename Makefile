# `make demo` locates the example photos; `make test` runs every check and test. Both need Python 3.11+ and make only.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CPU := .[cpu,heic]
DEV := .[cpu,heic,places,report,dev]
EXPORT := .[cpu,heic,places,report,dev,train,export,rtx,browser]
GPU := .[gpu,heic,places,report,dev,train,export,rtx]
# The flavour whose libraries come from NVIDIA's own index. ONNX Runtime's TensorRT provider needs 10.
TENSORRT_10 := tensorrt>=10.7,<11
TENSORRT_11 := tensorrt>=11
ifneq ($(TENSORRT),)
ifeq ($(TENSORRT_$(TENSORRT)),)
$(error TENSORRT=$(TENSORRT): say TENSORRT=10 or TENSORRT=11, or leave it out)
endif
endif

# uv does what pip does in a fraction of the time; where it cannot be installed, pip does it. The second is optional.
define install
	@echo "installing $(1) $(2) into $(VENV)"
	@if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet --python $(BIN)/python -e "$(1)" $(if $(2),"$(2)"); \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e "$(1)" $(if $(2),"$(2)"); fi
endef

.PHONY: help demo setup setup-dev setup-export check test test-slow unit gpu-check gpu-tests bench bench-training toy-world bundle demo-report clean

help:
	@echo "make demo       set up $(VENV) with the cpu extra and locate examples/photos"
	@echo "make test       set up the development environment, run every check and the default tests"
	@echo "make check      format, lint, types, import contracts"
	@echo "make test-slow  the tests that take long, with the training libraries"
	@echo "make gpu-check  all that needs an NVIDIA GPU, as one table (TENSORRT=10 or 11: with tensorrt too)"
	@echo "make bench      the pipeline benchmark"
	@echo "make bench-training  training beside a plain loop; make toy-world  the recipes on the toy world"
	@echo "make bundle     make the shipped bundle again, PHOTOS=folder with photos.csv"
	@echo "make demo-report  measure the shipped bundle on such photos into docs/demo-report"

demo: setup
	$(BIN)/geoinfer predict examples/photos --output demo.csv --restart
	@echo
	@cut -d, -f1-6 demo.csv

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "geoinfer needs Python 3.11 or newer; say make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true

# The stamps say which dependencies were installed: a changed pyproject.toml installs again.
$(VENV)/.cpu: $(BIN)/python pyproject.toml
	$(call install,$(CPU))
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(call install,$(DEV))
	@touch $@ $(VENV)/.cpu

$(VENV)/.export: $(VENV)/.dev
	$(call install,$(EXPORT))
	@touch $@

setup: $(VENV)/.cpu
setup-dev: $(VENV)/.dev
setup-export: $(VENV)/.export

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup-dev
	$(BIN)/pytest -n auto

test: check unit

test-slow: setup-export
	$(BIN)/pytest -n auto -m "slow and not gpu"

# In an environment of its own: the gpu and the cpu extra overwrite each other's files.
gpu-check:
	$(MAKE) gpu-tests VENV=.venv-gpu

gpu-tests: $(VENV)/.gpu$(TENSORRT)
	$(BIN)/python benchmarks/gpu_check.py --save

$(VENV)/.gpu$(TENSORRT): $(BIN)/python pyproject.toml
	$(call install,$(GPU),$(TENSORRT_$(TENSORRT)))
	@rm -f $(VENV)/.gpu*
	@touch $@

bench: setup-dev
	$(BIN)/python benchmarks/bench_pipeline.py

bench-training: setup-export
	$(BIN)/python benchmarks/bench_training.py

toy-world: setup-export
	$(BIN)/python benchmarks/toy_world.py --work toy-world.work

bundle: setup-export
	@test -n "$(PHOTOS)" || { echo "say make bundle PHOTOS=folder with photos.csv"; exit 2; }
	$(BIN)/python -m export demo-bundle --photos "$(PHOTOS)"

# No thumbnails: not all of the photos may be passed on. From within the folder: paths in the report say nothing of it.
demo-report: setup-dev
	@test -n "$(PHOTOS)" || { echo "say make demo-report PHOTOS=folder with photos.csv"; exit 2; }
	cd "$(PHOTOS)" && "$(abspath $(BIN))/geoinfer" evaluate photos.csv --hold-out source --device cpu --force \
		--name "demonstration bundle, leave-one-source-out" --thumbnails 0 --no-svg \
		--notice "A demonstration of the report, not of what geoinfer can do: the shipped bundle's model never learnt about places, and its index holds a few hundred holiday photos of two sources. Each photo is answered by the other source alone." \
		--out "$(CURDIR)/docs/demo-report"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build demo.*
