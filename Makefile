# One word for each thing that is done often. CARGO_TARGET_DIR is honoured everywhere.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Tests of the edge that don't mind what carries the sessions: they run over QUIC too.
EITHER := errors framing origins policy routing smuggling sockets stalls streaming upgrades
empty :=
space := $(empty) $(empty)
# As in: make bench ARGS="--quick --json bench.json"
ARGS ?=

.PHONY: help demo test check deny bench
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Run a site, an edge and an agent on this machine, and print the URL
	@scripts/demo.sh

# All passes name the whole workspace: with another choice of packages cargo would choose other features
# of what they depend on, and build that once more. The programs are built because tests run them.
test: ## Install what the tests need, then run them all
	scripts/install-test-deps.sh
	scripts/install-python-peers.sh
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; $(CARGO) nextest run --workspace && $(CARGO) test --workspace --doc \
		&& UNIROUTE_TEST_QUIC=1 $(CARGO) nextest run --workspace \
			-E 'package(uniroute-edge) and binary(it) and test(/^($(subst $(space),|,$(EITHER)))::/)'; \
	else \
		set -x; $(CARGO) test --workspace \
		&& UNIROUTE_TEST_QUIC=1 $(CARGO) test --workspace --test it -- $(EITHER:=::); \
	fi

check: ## What CI runs before the tests: format, lints, docs, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
	@$(MAKE) --no-print-directory deny

deny: ## Licences, sources, bans and known vulnerabilities of the dependencies
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
		echo "cargo-deny is not installed: dependencies are not checked"; \
	else \
		set -e; \
		$(CARGO) deny --all-features check bans licenses sources; \
		if $(CARGO) deny fetch db >/dev/null 2>&1; then \
			$(CARGO) deny --all-features check advisories; \
		else \
			echo "the advisory database cannot be fetched: known vulnerabilities are not checked"; \
		fi; \
	fi

bench: ## Compare the tunnel with a chain of two nginx reverse proxies (ARGS="--quick --json FILE")
	scripts/install-test-deps.sh
	$(CARGO) build --release --workspace --bins
	$(TARGET)/release/uniroute-bench e2e $(ARGS)
