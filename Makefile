# make up     build, and run all of it on this machine: ZooKeeper, redis-servers, agents, a proxy; until Ctrl-C
#             (options: make up ARGS='--listen 127.0.0.1:6400 --shards 2')
# make test   everything CI runs: format, lints, documentation, tests
# make model  the model checks with wide bounds, some minutes (the narrow ones are part of make test)
# make audit  licences and advisories of the dependencies (needs cargo-deny)

SHELL := /bin/bash
CARGO ?= cargo
ARGS ?=

.PHONY: setup build up test model audit

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

model: setup
	$(CARGO) test --release --locked --test model -- --include-ignored --nocapture --test-threads 1
	$(CARGO) test --release --locked --lib machine::check -- --include-ignored --nocapture --test-threads 1

audit:
	$(CARGO) deny check licenses bans
