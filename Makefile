# One entry for everything. Every target installs what it needs of `setup` first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(HOME)/.cargo/bin:$(PATH)

# For `make e2e` and `make e2e-cluster`: a part of the cases' names, and the data paths to run them on; SHORT=yes leaves out what
# takes long on the cluster.
CASES ?=
PATHS ?= ebpf,userspace
SHORT ?=

# For `make bench-cluster`: a part of the rows' names.
ROWS ?=

# For `make cluster-up`: how many nodes, and who serves Services: sheave, kube-proxy-nftables or none.
NODES ?= 2
PROXY ?= sheave

# Every program. The test among them makes cargo choose the features of dependencies that `cargo test --workspace` chooses, so
# that all the debug builds share one build of each dependency.
BINARIES := --workspace --bins --test tidy

.PHONY: help setup demo demo-up demo-down test check e2e cluster-up cluster-down e2e-cluster bench-quick bench-cluster image

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install everything that any target needs
	@.ci/setup

demo: ## Two nodes in namespaces on this machine, every Service type, checked; cleans up
	@.ci/setup build run
	@cargo build --locked $(BINARIES)
	@target/debug/sheave-demo

demo-up: ## The demo, left running to play with
	@.ci/setup build run
	@cargo build --locked $(BINARIES)
	@target/debug/sheave-demo --up

demo-down: ## End what demo-up left running
	@target/debug/sheave-demo --down

test: ## All that CI runs: check, unit and property tests, demo, end to end, image, a part of the cases on a cluster
	@.ci/test

check: ## Format, lints, licences, docs, arrows, generated code
	@.ci/setup build check
	@.ci/check

e2e: ## End to end; CASES=part-of-a-name PATHS=ebpf,userspace
	@.ci/setup build run test kube
	@cargo build --locked $(BINARIES)
	@KUBEBUILDER_ASSETS="$$(.ci/kube --path)" target/debug/sheave-e2e --cases '$(CASES)' --paths '$(PATHS)'

cluster-up: ## A real cluster on this machine, left running; NODES=2 PROXY=sheave|kube-proxy-nftables|none
	@.ci/setup build run test cluster
	@cargo build --locked $(BINARIES)
	@if [ '$(PROXY)' = sheave ]; then $(MAKE) --no-print-directory image; fi
	@NODES='$(NODES)' PROXY='$(PROXY)' tests/cluster/up

cluster-down: ## End what cluster-up left running
	@tests/cluster/down

e2e-cluster: ## End to end on the cluster that is up; CASES=part-of-a-name PATHS=ebpf,userspace SHORT=yes
	@cargo build --locked $(BINARIES)
	@tests/cluster/images && tests/cluster/load target/images/testpod.tar
	@tests/cluster/in world "$(CURDIR)/target/debug/sheave-e2e-cluster" --cases '$(CASES)' --paths '$(PATHS)' $(if $(SHORT),--short) || { tests/cluster/collect; exit 1; }

bench-quick: ## The limits we hold ourselves to, measured here in under ten minutes
	@.ci/setup build run bench kube
	@cargo build --locked --release --workspace --bins
	@KUBEBUILDER_ASSETS="$$(.ci/kube --path)" target/release/sheave-bench quick --json target/bench/quick.json

bench-cluster: ## Limits of a real cluster, with kube-proxy beside us, in under half an hour; ROWS=part-of-a-name
	@.ci/setup build run bench cluster
	@cargo build --locked --release --workspace --bins
	@$(MAKE) --no-print-directory image
	@trap 'tests/cluster/down --quiet' EXIT; target/release/sheave-bench cluster --json target/bench/cluster.json --rows '$(ROWS)'

image: ## The programs as one OCI archive, static, without a daemon or a registry
	@.ci/setup build image
	@.ci/image
