# The same commands as in README.md. Everything is installed into .venv from a lock; nothing outside it is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
ARGS ?=

.PHONY: help serve test test-floor check bench trials wheel sanitize quant-table golden lock clean

help:
	@echo "make serve [MODEL=path-or-hub-name] [HOST=127.0.0.1] [PORT=8000] [ARGS='--quant w8a8 ...']"
	@echo "make test | check | bench | trials | wheel | test-floor | sanitize | quant-table | golden | lock | clean"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python found; install python3.11 and python3.11-venv, or call make with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv"; exit 1; }

# A lock lists every package with its hashes, so pip needs no resolver (--no-deps) and accepts nothing else.
$(VENV)/.serve: requirements.lock setup.py | $(BIN)/python
	@echo "installing the server into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock setup.py | $(BIN)/python
	@echo "installing the development environment into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.serve $@

serve: $(VENV)/.serve
	@exec $(BIN)/paddle-ds serve --host $(HOST) --port $(PORT) $(if $(MODEL),--model "$(MODEL)") $(ARGS)

# Two files at a time: much of the suite waits for processes that start. A file's tests stay together, with what they share.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Beside llama.cpp and OpenVINO, which are installed and built on first use in an environment of their own. ARGS=--no-peers leaves them out.
bench: $(VENV)/.dev
	@mkdir -p bench-results
	$(BIN)/python tools/bench_peers.py --all --json bench-results/bench.json $(ARGS)

# Faults and loads under a running server, about half an hour: the table of docs/reliability.md. As root, with redis-server and faketime.
trials: $(VENV)/.dev
	@mkdir -p bench-results && rm -f bench-results/trials.*
	@failed=0; for trial in "load_trial.py clients" "load_trial.py stop" "load_trial.py stop --grace 2" "fault_trial.py hostile --install" \
	    "fault_trial.py update" "fault_trial.py kill" "fault_trial.py checkpoint" "fault_trial.py disk" "fault_trial.py redis" \
	    "fault_trial.py clock" "fault_trial.py delay"; do \
	    $(BIN)/python tools/$$trial --json bench-results/trials.jsonl --log bench-results/trials.log || failed=1; done; exit $$failed

# A wheel with the operators built for the Paddle in the lock and this platform, in dist/.
wheel: $(VENV)/.serve
	PADDLE_DS_PREBUILD=1 $(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

# The oldest Paddle we support, in an environment of its own: load, parity, one chat.
test-floor: $(VENV)/.dev
	tools/test_floor.sh "$(PYTHON)"

# The operators under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(VENV)/.dev
	tools/sanitize_operators.sh

# Every quantisation recipe on small models; rewrites the tables in docs/quantization.md.
quant-table: $(VENV)/.dev
	$(BIN)/python tools/quant_table.py $(ARGS)

golden: $(VENV)/.dev
	$(PYTHON) tools/make_golden_hf.py --venv .venv-golden
	$(PYTHON) tools/make_golden_quant.py --venv .venv-golden-quant
	$(BIN)/python tests/serving/transcripts.py

lock: $(VENV)/.dev
	$(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet --override requirements-overrides.txt requirements-dev.in -o requirements-dev.lock
	$(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet --override requirements-overrides.txt -c requirements-dev.lock requirements.in -o requirements.lock

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info
