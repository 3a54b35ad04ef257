PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python)

.PHONY: check format lint types test wheel clean

check: format lint types test

format:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) tools/typecheck.py

test:
	$(PYTHON) -m pytest -q -n auto

wheel: clean
	$(PYTHON) -m build --wheel

clean:
	rm -rf build dist *.egg-info
