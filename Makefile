# What there is to do with autodgate. `make` alone builds it.
#
#   make build   the static binary, stamped with its version, in dist/
#   make test    all tests with the race detector; gets the programs they use, where it may. TESTFLAGS: more for go test
#   make check   formatting and linters, then the tests
#   make fuzz    every fuzz target for FUZZTIME each
#   make lab     the simulated company behind the real front door
#   make image   the container image, with docker, podman or buildah
#   make clean

GO       ?= go
FUZZTIME ?= 30s
IMAGE    ?= autodgate
# Outside a git work tree the program says what the Go toolchain knows of it.
VERSION  := $(or $(VERSION),$(shell git describe --tags --always --dirty 2>/dev/null))

# Tools are modules like any other: pinned here, kept out of go.mod, built by `go run` once and cached.
GOFUMPT       = $(GO) run mvdan.cc/gofumpt@v0.12.0
STATICCHECK   = $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOLANGCI_LINT = $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o dist/autodgate ./cmd/autodgate

# One package at a time: some tests hold the program to a time limit, and then it wants the machine for itself.
test: peers
	$(GO) test -race -p 1 -timeout 8m $(TESTFLAGS) ./...

# Tests talk to programs other people wrote. Without one of them its tests are skipped (and fail where CI=true).
peers:
	@sh .ci/peers

check: lint test

lint:
	@unformatted=$$($(GOFUMPT) -l .) || exit 1; \
	test -z "$$unformatted" || { echo "not formatted, run gofumpt -w:" $$unformatted; exit 1; }
	$(GO) vet ./...
	$(STATICCHECK) ./...
	$(GOLANGCI_LINT) run ./...

# FUZZTIME is a duration (30s) or a number of inputs (20000x). A target that fails is run once more: a finding is in
# testdata/fuzz by then and fails at once. What does not was the machine: an input that a busy one kept for 10 s, or, with
# a duration and Go before 1.27, a bare "context deadline exceeded" (go.dev/issue/75804).
fuzz:
	@for package in $$($(GO) list ./...); do \
		targets=$$($(GO) test -vet=off -list '^Fuzz' $$package) || { echo "$$targets"; exit 1; }; \
		for target in $$(echo "$$targets" | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			set -- $(GO) test -vet=off -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
			"$$@" || { echo 'once more:'; "$$@"; } || exit 1; \
		done; \
	done

lab:
	$(GO) run ./cmd/autodgate lab

# What the image holds, as directories: the Dockerfile's first stage makes them with this same rule. An image from
# scratch has no CA certificates of its own, and those who verify public servers need them.
CA_CERTIFICATES ?= /etc/ssl/certs/ca-certificates.crt
image-files: build
	rm -rf dist/image dist/state
	mkdir -p dist/image/etc/ssl/certs dist/image/etc/autodgate dist/image/var/lib dist/state
	cp dist/autodgate dist/image/
	cp $(CA_CERTIFICATES) dist/image/etc/ssl/certs/

# HEALTHCHECK is not in the OCI format, so podman and buildah are asked for docker's.
image:
	@if docker info >/dev/null 2>&1; then set -- docker build; \
	elif command -v podman >/dev/null; then set -- podman build --format docker; \
	elif command -v buildah >/dev/null; then set -- buildah build --format docker; \
	else echo 'needs docker, podman or buildah'; exit 1; fi; \
	set -x; "$$@" --build-arg VERSION='$(VERSION)' --tag '$(IMAGE)' .

clean:
	rm -rf dist

.PHONY: build test peers check lint fuzz lab image-files image clean
