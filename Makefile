# make up     build, and run all of it on this machine: ZooKeeper, redis-servers, agents, a proxy; until Ctrl-C
#             (options: make up ARGS='--listen 127.0.0.1:6400 --shards 2')
# make test   everything CI runs: format, lints, documentation, tests
# make compat Redis' own test suite and those of clients, through pointsman and directly; some 15 minutes
#             (options: make compat SUITES="walrus huey" ARGS=--fast; a part of it is in make test)
# make chaos  faults drawn from a seed against a cluster on hosts of its own; needs root
#             (options: make chaos ARGS='CHAOS_SEED=7 CHAOS_MINUTES=30 CHAOS_W=0 CHAOS_READS=causal CHAOS_PIPELINE=32')
# make model  the model checks with wide bounds: long, up to 5 GB (the narrow ones are part of make test)
# make fuzz   each fuzz target for a minute; needs a nightly compiler and cargo-fuzz
#             (options: make fuzz TARGETS='keys peers' ARGS='-max_total_time=600')
# make audit  licences and advisories of the dependencies (needs cargo-deny)

SHELL := /bin/bash
CARGO ?= cargo
ARGS ?=
TARGETS ?= commands keys peers replies requests znodes
SUITES ?=

.PHONY: setup build up test compat chaos model fuzz audit

setup:
	@conf/setup.sh

build: setup
	$(CARGO) build --release --locked

up: build
	@exec target/release/pointsman up $(ARGS)

test: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --locked; \
	else \
		$(CARGO) test --locked; \
	fi

compat: build
	python3 tests/compat/compat.py $(ARGS) $(SUITES)

chaos: setup
	env $(ARGS) $(CARGO) test --locked --test chaos -- --ignored --nocapture --exact seeds::many_seeds_break_no_promise

model: setup
	$(CARGO) test --release --locked --test model -- --include-ignored --nocapture --test-threads 1
	$(CARGO) test --release --locked --lib machine::check -- --include-ignored --nocapture --test-threads 1

fuzz:
	for target in $(TARGETS); do \
		corpus="fuzz/corpus/$$target"; \
		if [ -d tests/corpus/$$target ]; then corpus="$$corpus tests/corpus/$$target"; fi; \
		$(CARGO) +nightly fuzz run --sanitizer none $$target $$corpus -- -max_total_time=60 $(ARGS) || exit 1; \
	done

audit:
	$(CARGO) deny check licenses bans
