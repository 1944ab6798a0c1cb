# make demo   both stages on the embedded images, 10 minutes      make demo BUDGET=2m DATA=~/Pictures
# make test   lint, types, all tests that are not marked slow, in three processes for two cores; the slowest 25 are named
# make processes   runs of several processes, and runs that are killed or signalled: what make test leaves out for its length
# make docs-check   figures of the documentation against the recorded results beside them
# make docs   the documentation site, in site/; it needs no network once it is built
# make coverage     the tests of both, and which lines they run; it fails below the floor in pyproject.toml
# make audit  known weaknesses of the versions in requirements.lock, where there is a network; make sbom: what they are
# make wheel  wheel and sdist in dist/, and the demo with the wheel in an environment that had nothing
# make help-pages  what --help says, written down after anything changed of which it tells: fields, docstrings, recipes, verbs
# make parity the same weights in our networks, in those of timm and transformers, and in ONNX, and the examples; it installs these
#
# PYTHON=python3.12   which Python to use (3.11 or later)
# TORCH=cpu           a small torch without CUDA (Linux; on macOS it always is)

PYTHON ?= python3
BUDGET ?= 10m
TORCH ?= default
BIN := .venv/bin

.PHONY: demo test lint types unit processes slow docs-check docs coverage help-pages parity lock audit sbom wheel clean

demo: .venv/installed
	$(BIN)/smalti demo --budget $(BUDGET) $(if $(DATA),--data $(DATA)) $(if $(OUT),--out $(OUT))

test: lint types unit

lint: .venv/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: .venv/installed-dev
	$(BIN)/mypy

unit: .venv/installed-dev
	$(BIN)/pytest -n 3 --dist loadscope --durations 25

processes: .venv/installed-dev
	$(BIN)/pytest -n 3 --dist loadscope -m "processes and not slow"

slow: .venv/installed-dev
	$(BIN)/pytest -m slow

docs-check: .venv/installed-dev
	$(BIN)/pytest -m docs

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

coverage: .venv/installed-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 3 --dist loadscope -m "not slow and not docs"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

help-pages: .venv/installed-dev
	$(BIN)/python scripts/help_pages.py

parity: .venv/installed-interop
	$(BIN)/pytest -m "not docs" tests/parity tests/exporting tests/runs/test_import_weights.py tests/test_examples.py tests/evaluation/test_neighbours.py

.venv/installed: pyproject.toml scripts/install.sh
	@sh scripts/install.sh $(PYTHON) $(TORCH) .
	@touch $@

.venv/installed-dev: .venv/installed
	@sh scripts/install.sh $(PYTHON) $(TORCH) '.[dev]'
	@touch $@

.venv/installed-interop: .venv/installed-dev
	@sh scripts/install.sh $(PYTHON) $(TORCH) '.[dev,interop]'
	@touch $@

.venv/installed-docs: .venv/installed
	@sh scripts/install.sh $(PYTHON) $(TORCH) '.[docs]'
	@touch $@

lock: .venv/installed-dev  # the exact versions that were tested; pip install --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements.lock

audit:  # in an environment of its own: what it needs is not what was tested
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit; } \
	    || { echo "not audited: pip-audit cannot be installed here; is there a network?"; exit 2; }
	@$(PYTHON) scripts/audit.py .venv-audit/bin/pip-audit

sbom:
	@$(PYTHON) scripts/sbom.py > sbom.json && echo "written: sbom.json"

wheel:
	@test -x .venv-build/bin/python || { $(PYTHON) -m venv .venv-build && .venv-build/bin/pip install --quiet build; }
	rm -rf dist
	.venv-build/bin/python -m build
	$(PYTHON) scripts/check_wheel.py dist --pip '$(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)'

clean:
	rm -rf .venv .venv-audit .venv-build dist sbom.json site .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
