# One command each. Everything needed is installed into .venv by scripts/setup.sh from the lock files.
PYTEST = .venv/bin/python -m pytest

.PHONY: run test test-distributed check bench bench-quick deploy chaos example setup format docs

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
	@scripts/check_native.sh

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	@if cargo fmt --version >/dev/null 2>&1; then cargo fmt --manifest-path native/Cargo.toml; fi

bench: setup
	.venv/bin/python -m bench full

bench-quick: setup
	.venv/bin/python -m bench quick --check

deploy: setup
	.venv/bin/python scripts/write_deploy.py

# Thousands of seeds and many kills; FIRST_SEED, SEEDS and ROUNDS choose how many (docs/RELIABILITY.md).
chaos: setup
	@SENSORKEEP_TEST_SEEDS=$${SEEDS:-2000} SENSORKEEP_TEST_FIRST_SEED=$${FIRST_SEED:-1} $(PYTEST) -n 2 --timeout 7200 tests/simulation
	@SENSORKEEP_TEST_KILL_ROUNDS=$${ROUNDS:-50} $(PYTEST) --timeout 7200 tests/blackbox/test_crash.py

example: setup
	.venv/bin/python scripts/example.py

docs: setup
	.venv/bin/python scripts/write_docs.py
