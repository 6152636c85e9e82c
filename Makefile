# Two commands do everything: `make demo` and `make test`. Both install what
# they need first (scripts/setup says what).

GO       ?= go
GOFLAGS  += -trimpath
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
export CGO_ENABLED ?= 0

.PHONY: help build demo test race bench generate lint clean

help:
	@echo "make demo       replicate, launch, test and cut over a server in QEMU (KEEP=1 leaves it running)"
	@echo "make test       run every test, real disks, kernels and machines included"
	@echo "make bench      measure against peers; writes build/bench.json"
	@echo "make build      build/rehost, build/rehost-agent"
	@echo "make generate   make all generated code again (needs clang)"
	@echo "make lint       golangci-lint with .golangci.yml"

build:
	@scripts/setup build
	$(GO) build $(GOFLAGS) -ldflags '$(LDFLAGS)' -o build/ ./cmd/rehost ./cmd/rehost-agent

demo:
	@scripts/setup demo
	@$(MAKE) --no-print-directory build
	$(GO) build $(GOFLAGS) -o build/demo ./e2e/demo
	./build/demo $(if $(KEEP),--keep)

# The race detector needs cgo. Packages run one after the other: the real ones
# measure time against machines that they boot.
test:
	@scripts/setup test
	@$(MAKE) --no-print-directory build
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt-ed:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	CGO_ENABLED=1 $(GO) test -race -json -p 2 -timeout 20m ./... | $(GO) run ./internal/testreport

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
