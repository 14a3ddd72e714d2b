# make demo       installs everything, builds two bundles and runs them
# make test       linter, types and all tests
# make test-fast  the tests that build no networks, in under two minutes
# make docs       makes the generated pages of docs/ again
PYTHON ?= python3
PYTEST_JOBS ?= 2
RUN := .venv/bin/python

.PHONY: demo test test-fast lint docs clean

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch .venv/installed

demo: .venv/installed
	$(RUN) -m fixtures demo demo
	$(RUN) -m compiler build demo/model.onnx --calibration demo/calibration.npz --tpus 6 \
		--output demo/model.bundle --force
	$(RUN) -m compiler run demo/model.bundle --input demo/calibration.npz --output demo/result.npz
	$(RUN) -m compiler build fixtures/language.gguf --context 256 --output demo/language.bundle --force
	$(RUN) -m compiler generate demo/language.bundle "A class definition" --tokens 40 --stats

lint: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

test: .venv/installed lint
	$(RUN) -m pytest -n $(PYTEST_JOBS)

test-fast: .venv/installed
	$(RUN) -m pytest -n $(PYTEST_JOBS) -m "not slow"

# tests/test_docs.py holds that these pages are current.
docs: .venv/installed
	$(RUN) -m docs.modules > docs/modules.md
	$(RUN) -m docs.passes > docs/passes.md
	$(RUN) -m compiler.ops.document > docs/supported-ops.md
	$(RUN) -m compiler.cli.document > docs/cli.md
	$(RUN) -m docs.api > docs/api.md
	$(RUN) -m compiler.emit.document

clean:
	rm -rf .venv demo build *.egg-info
