# Three commands do everything on a fresh machine: `make run`, `make serve` and `make test`. Each makes the environment it needs.
PYTHON ?= python3
VENV := .venv
# Besides the newest transformers: the oldest 5.x supported, and the last 4.x.
SEAMS := 5.2.0 4.57.6
RUN ?=
SERVE ?=
MINUTES ?= 60
REAL := smollm2 gemma3
SESSIONS ?= 1000
REQUESTS ?= 1000
ROUNDS ?= 5
BODIES ?= 100000
export PEERS_smollm2 PEERS_gemma3

.PHONY: run serve test test-newest test-real real-models lint docs picture calibration keep-less claims theory models kinds vlm real speed kernels sanitize fuzz fuzz-serve soak clean $(SEAMS:%=test-seam-%)
.DELETE_ON_ERROR:

run: $(VENV)/ready
	$(VENV)/bin/headwise run $(RUN)

serve: $(VENV)/ready
	$(VENV)/bin/headwise serve $(SERVE)

test: test-newest $(SEAMS:%=test-seam-%)

test-newest: $(VENV)/ready
	$(VENV)/bin/python -m pytest -n auto --dist worksteal --ignore tests/real

# The seam to transformers, again on another version of it.
$(SEAMS:%=test-seam-%): test-seam-%: .venv-%/ready
	.venv-$*/bin/python -m pytest -n auto --dist worksteal tests/seams tests/engine

# Really pretrained models, among the user's caches: what is there already is not fetched again.
real-models: $(VENV)/ready
	$(VENV)/bin/headwise models get $(REAL)

# The tests on them, each model in a process of its own; those of a model that is not there skip.
test-real: $(VENV)/ready
	$(VENV)/bin/python -m pytest -n 2 --dist loadgroup -rs --durations 5 tests/real

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# All of docs/reference/, and the tables of figures in the other pages, from docs/data/.
docs: $(VENV)/ready
	$(VENV)/bin/python -m headwise.cli.docs docs

# The picture of the README, from a run of its own.
picture: $(VENV)/ready
	mkdir -p out
	$(VENV)/bin/headwise run --json > out/run.json
	cp out/run.json docs/data/picture.json
	$(VENV)/bin/python -m headwise.report.pictures docs/data/picture.json docs/picture.png

# What is measured once of the embedded model's heads, for the methods that tell heads apart. What the file holds already
# is not measured again: delete it to have all of it made anew.
calibration: $(VENV)/ready
	$(VENV)/bin/headwise calibrate --only queries,induction,gates,spans,nats --train-context 3000 \
		--out src/headwise/assets/embedded/heads.calibration

# The table of everything that keeps less, and its picture: about ten minutes on two cores.
keep-less: $(VENV)/ready
	$(VENV)/bin/headwise sweep benchmarks/keep_less.toml --out out/keep_less
	$(VENV)/bin/python -m headwise.report.fronts out/keep_less/result.json docs/data/keep_less.json docs/keep_less.png
	$(VENV)/bin/python -m headwise.cli.docs docs

# Every claim of the list of systems, measured anew against its controls; hours, and it goes on where it was stopped.
claims: $(VENV)/ready real-models
	$(VENV)/bin/headwise claims --out src/headwise/assets/claims.json
	$(VENV)/bin/python -m headwise.cli.docs docs

# The statements of papers as experiments, and a picture of each; it goes on where it was stopped.
theory: $(VENV)/ready
	$(VENV)/bin/headwise theory --all --out src/headwise/assets/theory.json
	mkdir -p docs/theory
	$(VENV)/bin/python -m headwise.report.theory_picture src/headwise/assets/theory.json docs/theory
	$(VENV)/bin/python -m headwise.cli.docs docs

# Every model class of transformers, tiny and random, under headwise and alone: about five minutes for each version.
models: $(VENV)/ready $(SEAMS:%=.venv-%/ready)
	mkdir -p docs/data/models
	for venv in $(VENV) $(SEAMS:%=.venv-%); do \
		version=$$($$venv/bin/python -c "import transformers; print(transformers.__version__)"); \
		HF_HUB_OFFLINE=1 $$venv/bin/headwise matrix --out docs/data/models/$$version.json > /dev/null || exit 1; \
	done
	$(VENV)/bin/python -m headwise.cli.docs docs

# A tiny model of each kind of attention, trained until it finds a needle; it goes on where it was stopped.
kinds: $(VENV)/ready
	$(VENV)/bin/python benchmarks/kinds.py --state out/kinds --json docs/data/kinds.json
	$(VENV)/bin/python -m headwise.cli.docs docs

# The small vision-language model, among the user's caches, and what image methods are worth on it; it goes on where it
# was stopped.
vlm: $(VENV)/ready
	mkdir -p out
	$(VENV)/bin/headwise vision train
	$(VENV)/bin/headwise vision router out/router
	$(VENV)/bin/headwise vision judge --router out/router --out out/vision.json
	$(VENV)/bin/python -m headwise.report.vision out/vision.json docs/data/vision
	$(VENV)/bin/python -m headwise.cli.docs docs

# Every method on really pretrained models, at half, a quarter and a tenth: many hours, and it goes on where it was
# stopped.
real: $(VENV)/ready real-models
	mkdir -p docs/data/real
	for host in smollm2_4k smollm2_8k gemma3_8k gemma3_16k; do \
		$(VENV)/bin/headwise front $$host $$(printf -- "--plan %s " docs/data/plans/$${host%_*}-*.plan) --out docs/data/real/$$host.json || exit 1; \
	done
	$(VENV)/bin/python -m headwise.report.real docs/data/real/smollm2_4k.json docs/data/real/gemma3_8k.json docs/real.png --share 0.25 0.5
	$(VENV)/bin/python -m headwise.cli.docs docs

# Whole models beside what one would pick instead, on a quiet machine: PEERS_smollm2="--openvino ENV/bin/python FOLDER" and so
# on name what else is there.
speed: $(VENV)/ready real-models
	mkdir -p out/speed
	set -e; for model in $(REAL); do \
		peers=$$(eval echo \$$PEERS_$$model); \
		$(VENV)/bin/python benchmarks/peers.py $$model --transformers --weights int8 int4 $$peers --prefill 4096 \
			--decode 1024 8000 --steps 15 --json out/speed/$$model.json; \
	done
	$(VENV)/bin/python -m headwise.report.speed $(REAL:%=out/speed/%.json) docs/data/speed docs/speed.png
	$(VENV)/bin/python -m headwise.cli.docs docs

# Compile the kernels anew after a change in native/.
kernels: $(VENV)/ready
	$(VENV)/bin/python native/build.py

# The kernels' tests under the address and undefined-behaviour sanitizers, on a copy of the package.
sanitize: $(VENV)/ready
	rm -rf out/sanitize && mkdir -p out/sanitize && cp -r src out/sanitize/src
	$(VENV)/bin/python native/build.py --sanitize --out out/sanitize/src/headwise/kernels/native/lib
	$(VENV)/bin/python native/build.py --sanitize --out out/sanitize/src/headwise/kernels/native/lib --levels amx_emulated
	PYTHONPATH=out/sanitize/src ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
		$(VENV)/bin/python -m pytest tests/compiled/test_chain.py tests/kernels/test_native_decode.py \
		tests/kernels/test_native_prefill.py \
		tests/kernels/test_native_byproducts.py tests/kernels/test_native_codecs.py tests/kernels/test_native_weights.py \
		tests/kernels/test_native_estimates.py tests/kernels/test_native_topk.py tests/kernels/test_native_chosen.py \
		tests/kernels/test_native_layer.py tests/kernels/test_packed.py tests/kernels/test_backends.py tests/cache/test_append.py tests/layers -p no:cacheprovider

# The tests that look for more, run on with fresh seeds: MINUTES=60. Prints cases, failures and the seeds to try again.
fuzz: $(VENV)/ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.fuzz --minutes $(MINUTES)

# Many mixed conversations, which end in the memory and files they began with.
soak: $(VENV)/ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.fuzz.soak --sessions $(SESSIONS)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.serve.soak --requests $(REQUESTS)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.serve.killed --rounds $(ROUNDS)

# Bodies of requests with anything in them: BODIES=100000. None is an error of the server; it goes on where it was stopped.
fuzz-serve: $(VENV)/ready
	mkdir -p out
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.serve.fuzz --bodies $(BODIES) --state out/fuzz-serve.json

$(VENV)/ready: pyproject.toml constraints.txt $(wildcard native/*) hatch_build.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,real]"
	touch $@

.venv-%/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "transformers==$*" -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-* out
