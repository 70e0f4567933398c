# make up     build, and run a proxy before a Redis of its own
# make test   everything CI runs: format, lints, documentation, tests
# make audit  licences and advisories of the dependencies (needs cargo-deny)

SHELL := /bin/bash
CARGO ?= cargo
LISTEN ?= 127.0.0.1:6400
REDIS_PORT ?= 6401

.PHONY: setup build up test audit

setup:
	@conf/setup.sh

build: setup
	$(CARGO) build --release --locked

up: build
	@conf/try.sh $(LISTEN) $(REDIS_PORT)

test: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --locked; \
	else \
		$(CARGO) test --locked; \
	fi

audit:
	$(CARGO) deny check licenses bans
