# One target a verb. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.tools/bin:$(PATH)

EXAMPLE := examples/ridge-diabetes
KAAI := target/release/kaai

.PHONY: help up demo test lint bench bench-redeploy bench-packager bench-build bench-env schema docs tools build conda clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: tools build ## build, start all of kaai, deploy an example and ask it; stays until Ctrl-C
	@exec $(KAAI) up --deploy $(EXAMPLE)

# With KAAI=target/debug/kaai what the tests have built is shown, and nothing is built.
demo: tools $(if $(filter target/debug/%,$(KAAI)),,build) ## the same on a folder of the moment, and end after the prediction
	@home=$$(mktemp -d "$${TMPDIR:-/tmp}/kaai-demo.XXXXXX"); trap 'rm -rf "$$home"' EXIT; \
	$(KAAI) up --home "$$home" --bus-port 0 --router-address 127.0.0.1:0 --deploy $(EXAMPLE) --exit

test: tools ## run every test
	@python3 tools/run_tests.py

lint: ## formatting, clippy, generated documents
	cargo fmt --all --check
	cargo fmt --manifest-path conda/Cargo.toml --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	cargo test --quiet --package proto --test contract the_documents_are_as_generated

bench: bench-packager bench-redeploy bench-build bench-env ## run every benchmark

bench-redeploy: tools build ## a changed source line until it answers, beside the same by hand
	@python3 benches/redeploy.py

bench-packager: tools build ## packaging, beside zip, git archive and shutil
	@python3 benches/packager.py

bench-build: tools build ## an environment as an image, beside docker build and push
	@cargo build --release --quiet --package builder --bin kaai-builder
	@python3 tools/base_image.py && python3 benches/build.py

bench-env: tools build ## 141 environments hashed, and looked up in a registry
	@cargo build --release --quiet --package builder --example lookups
	@python3 tools/base_image.py && python3 benches/env.py

schema: ## write the generated documents: the contract, and the users of the bus
	cargo run --quiet --package proto --example write-schema
	cargo run --quiet --package cli --example write-users

docs: ## write the documentation of the crates
	cargo doc --workspace --no-deps

tools: ## fetch nats-server and uv into .tools, unless PATH has them
	@python3 tools/fetch.py

build: ## build the release of kaai
	@python3 tools/build.py

conda: ## build kaai-conda, without which conda packages are refused (400 crates, some minutes)
	@python3 tools/build_conda.py

clean: ## remove what was built and fetched
	rm -rf target .tools
