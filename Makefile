# `make demo` on a fresh machine installs everything into .venv first. pip's own configuration and environment
# variables (index, certificates, wheel folders) apply as they do everywhere else.
# `make demo SERVE=1` leaves the composition served at the end.
PYTHON ?= python3
EXTRAS ?= dev
STAMP := .venv/.installed

.PHONY: install demo test test-slow lint format bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt -e '.[$(EXTRAS)]'
	touch $(STAMP)

demo: install
	.venv/bin/python -m examples.arithmetic.demo $(if $(SERVE),--serve)

test: install
	.venv/bin/python -m pytest -m "not slow"

test-slow: install
	.venv/bin/python -m pytest -m slow

lint: install
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: install
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

bench: install
	.venv/bin/python -m benchmarks --all

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
