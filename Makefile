# Everything runs in a virtual environment of its own, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# No hub and no telemetry: the package works offline. Idle threads must not spin on a busy machine.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-cpu lint docs show-docs bench fuzz kill clean

demo: $(VENV)/installed
	$(BIN)/na-ssl demo --out demo_output

# Every test file runs in one of as many processes as there are cores; each takes up to 1.5 GB.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# The golden tests once more with torch's and numpy's plainest code paths, as the least processor would run them.
test-cpu: $(VENV)/installed-dev
	ATEN_CPU_CAPABILITY=default NPY_DISABLE_CPU_FEATURES="$$($(BIN)/python tests/plain_cpu.py)" \
		$(BIN)/python -m pytest -m golden

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in site/html; a dead link and a public name without a docstring are errors.
docs: $(VENV)/installed-docs
	$(BIN)/python docs/make_site.py

show-docs: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site/html 8000

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks

# 10,000 good, odd and damaged inputs; tests/fuzz is the short run of the same.
fuzz: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.fuzz

# 200 kills in the midst of writing.
kill: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.kill

clean:
	rm -rf $(VENV) demo_output site

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing the package into $(VENV) (once; a minute or two)"
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-docs: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing the package and what builds its site into $(VENV) (once; a minute or two)"
	$(PIP) --editable ".[docs]"
	@touch $@ $(VENV)/installed

$(VENV)/installed-dev: $(BIN)/python pyproject.toml packages/na-ssl-edge/pyproject.toml constraints.txt
	@echo "Installing the package and its development tools into $(VENV) (once; a minute or two)"
	$(PIP) --editable ".[dev]" --editable packages/na-ssl-edge
	@touch $@ $(VENV)/installed $(VENV)/installed-docs
