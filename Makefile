# Two commands do everything on a fresh machine: `make run` and `make test`. Each makes the environment it needs.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
RUN ?=

.PHONY: run test test-newest test-oldest lint docs picture clean
.DELETE_ON_ERROR:

run: $(VENV)/ready
	$(VENV)/bin/headwise run $(RUN)

test: test-newest test-oldest

test-newest: $(VENV)/ready
	$(VENV)/bin/python -m pytest

# The seam to transformers, again on the oldest version it supports.
test-oldest: $(OLDEST)/ready
	$(OLDEST)/bin/python -m pytest tests/engine

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

docs: $(VENV)/ready
	$(VENV)/bin/python -m headwise.cli.docs docs

# The picture of the README, from a run of its own.
picture: $(VENV)/ready
	mkdir -p out
	$(VENV)/bin/headwise run --json > out/run.json
	$(VENV)/bin/python -m headwise.report.pictures out/run.json docs/picture.png

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(OLDEST)/ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) out
