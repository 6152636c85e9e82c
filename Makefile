# Two commands do everything: `make demo` and `make test`. Both install what
# they need first (scripts/setup says what).

GO       ?= go
GOFLAGS  += -trimpath
VERSION  ?= $(shell sed -n 's/^var Version = "\(.*\)"/\1/p' agent/doc.go)
LDFLAGS  := -s -w
export CGO_ENABLED ?= 0

.PHONY: help build packages release demo test mutants soak race bench generate lint clean

help:
	@echo "make demo       replicate, launch, test and cut over a server in QEMU (KEEP=1 leaves it running)"
	@echo "make test       run every test, real disks, kernels and machines included"
	@echo "make soak       an hour of faults under load, every point judged (SOAK=10m for less; SOAK_SEED=N in that order)"
	@echo "make mutants    every mistake that tests must catch, of which make test takes some"
	@echo "make bench      measure against peers; writes build/bench.json"
	@echo "make build      build/rehost, build/rehost-agent"
	@echo "make packages   build/packages: static programs, .deb and .rpm for amd64 and arm64 (VERSION=1.2.3)"
	@echo "make release    the same in build/release, signed (KEY=file: a minisign key, which is made if it is not there)"
	@echo "make generate   make all generated code again (needs clang)"
	@echo "make lint       golangci-lint with .golangci.yml"

build:
	@scripts/setup build
	$(GO) build $(GOFLAGS) -ldflags '$(LDFLAGS)' -o build/ ./cmd/rehost ./cmd/rehost-agent

packages:
	@scripts/setup packages
	$(GO) run ./packaging --version $(VERSION) --out build/packages

release:
	@test -n '$(KEY)' || { echo "make release KEY=file: the minisign key that signs it; keep it where no one else gets at it, and not in this tree" >&2; exit 1; }
	@scripts/setup release
	$(GO) run ./packaging --version $(VERSION) --key '$(KEY)' --out build/release

demo:
	@scripts/setup demo
	@$(MAKE) --no-print-directory build
	$(GO) build $(GOFLAGS) -o build/demo ./e2e/demo
	./build/demo $(if $(KEEP),--keep)

# The race detector needs cgo. The tests of the whole run without it and one
# package after the other: they time kernels and machines, and the programs that
# they start are the ones that people run. So do the model of the capture engine,
# whose mutations need more seeds than the race detector has time for, and the
# file systems after the first one.
test:
	@scripts/setup test
	@$(MAKE) --no-print-directory build
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt-ed:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	{ CGO_ENABLED=1 $(GO) test -race -json -p 2 -timeout 15m $$($(GO) list ./... | grep -v '^rehost/e2e'); \
	  $(GO) test -json -run 'TestModel|FreeSpace' ./capture; \
	  $(GO) test -json -p 1 -timeout 30m ./e2e/...; } | $(GO) run ./internal/testreport

mutants:
	@scripts/setup test
	REHOST_MUTANTS=all $(GO) test -run 'Mutant|Mutation|CutShort' -count=1 -timeout 60m ./...

soak: SOAK ?= 1h
soak:
	@scripts/setup test
	SOAK='$(SOAK)' $(GO) test -run 'TestSoak$$' -v -count=1 -timeout 0 ./e2e

bench:
	@scripts/setup bench
	@$(MAKE) --no-print-directory build
	$(GO) build $(GOFLAGS) -o build/rehost-bench ./bench
	./build/rehost-bench -o build/bench.json

generate:
	$(GO) generate ./...

lint:
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...

clean:
	rm -rf build
