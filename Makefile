# One command each. Everything needed is installed into .venv by scripts/setup.sh from the lock files.
PYTEST = .venv/bin/python -m pytest

.PHONY: run test test-distributed check bench example setup format docs lock

run:
	@scripts/setup.sh runtime
	@exec .venv/bin/sensorkeep serve

setup:
	@scripts/setup.sh dev

test: setup
	@$(PYTEST) -n 2 --dist worksteal tests
	@$(MAKE) --no-print-directory test-distributed

test-distributed: setup
	@$(PYTEST) --distributed -n 2 --dist worksteal tests

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: setup
	.venv/bin/python -m bench

example: setup
	.venv/bin/python scripts/example.py

docs: setup
	.venv/bin/python scripts/write_docs.py
