# What a newcomer needs: `make demo` and `make test`. Everything built goes to a cache outside the clone.

CACHE   ?= $(or $(ALOFT_CACHE),$(HOME)/.cache/aloft)
PROFILE ?= release
export CARGO_TARGET_DIR ?= $(CACHE)/target
# Telemetry of the SDK under test goes nowhere.
export DO_NOT_TRACK = 1

# What is tested can be told where to die.
features = $(if $(filter dev,$(PROFILE)),--features failpoints)
profile_dir = $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
VENV = $(CACHE)/venv

.PHONY: demo test test-rust simulate test-e2e bench lint format build venv tools refresh-idl crash chaos

demo: tools build venv ## Build, start, run a real workflow with the official SDK, show the result, stop.
	@$(VENV)/bin/python tools/demo.py $(CARGO_TARGET_DIR)/$(profile_dir)/aloft

build: tools ## The binary, in $(PROFILE).
	cargo build --profile $(PROFILE) -p aloft $(features)

test: test-rust test-e2e ## Every test.

test-rust: tools
	@tools/bootstrap.sh test
	cargo test --workspace --no-fail-fast --features aloft/failpoints

# Random sequences of requests against the model of the contract (crates/aloft-sim): `make simulate N=100000`, again with
# the SEED that a failure names; over the port, with kills and restarts: `make simulate PORT=1 N=1000`.
# Whole fleets with all that goes wrong among them: `make simulate FLEET=1 SEEDS=100000`, from seed FROM on; TRACE=1 says
# everything that happens in one of them.
simulate: tools
	$(if $(PORT),cargo build -p aloft)
	$(if $(PORT),BINARY=$(CARGO_TARGET_DIR)/debug/aloft) cargo run -q -p aloft-sim -- $(if $(FLEET),--fleet) $(if $(N)$(SEEDS),--count $(or $(SEEDS),$(N))) $(if $(SEED)$(FROM),--seed $(or $(FROM),$(SEED))) $(if $(JOBS),--jobs $(JOBS)) $(if $(TRACE),--trace) $(if $(DEFECT),--defect $(DEFECT))

test-e2e: PROFILE = dev
test-e2e: build venv
	@tools/bootstrap.sh test
	ALOFT_BIN=$(CARGO_TARGET_DIR)/debug/aloft $(VENV)/bin/python -m pytest -n 2 tests/e2e

crash: PROFILE = dev
crash: build venv ## Twenty kills of the server in the middle of a run.
	ALOFT_BIN=$(CARGO_TARGET_DIR)/debug/aloft $(VENV)/bin/python -m pytest tests/e2e/test_crash.py

chaos: PROFILE = dev
chaos: build venv ## An hour of random kills of servers, workers and Postgres; MINUTES, SEED and STORE=sqlite choose others.
	@tools/bootstrap.sh test
	$(VENV)/bin/python tests/chaos/chaos.py $(CARGO_TARGET_DIR)/debug/aloft \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(STORE),--store $(STORE))

bench: build venv ## The figures, measured; raw results go to bench/results/.
	cargo build --profile $(PROFILE) -p aloft -p aloft-load
	$(VENV)/bin/python bench/run.py $(CARGO_TARGET_DIR)/$(profile_dir)/aloft $(if $(SHORT),--short)

lint: tools
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

format:
	cargo fmt --all

tools: ## What the build and the tests need beside Rust and Python.
	@tools/bootstrap.sh

# One stamp per content of the requirements, so that a change of them makes a new environment.
venv: tools
	@tools/venv.sh $(VENV) tests/e2e/requirements.txt

refresh-idl: ## Rebuild idl/flyteidl2.fds from the newest PyPI package; name a version with IDL=2.0.53.
	uv run --no-project --with flyteidl2$(if $(IDL),==$(IDL)) python tools/refresh_idl.py idl/flyteidl2.fds
