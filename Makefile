# What CI runs, a person runs. `make help` lists the targets.

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BUILDARGS ?=
TESTARGS  ?=
RACEARGS  ?=
BENCH     ?= --keys 1000000 --batches 200
GOBENCH   ?= .
PYTESTARGS ?=
EXAMPLEARGS ?=
KAFKA_PORT ?= 19092
REDIS_PORT ?= 16379

# DuckDB's Arrow interface exists only with its tag; what is set already, in the environment or by `go env -w`, stays.
export GOFLAGS := $(strip $(shell go env GOFLAGS 2>/dev/null) -tags=duckdb_arrow)
export CGO_ENABLED := 1
export KAFKA_PORT REDIS_PORT

.DEFAULT_GOAL := help
.PHONY: help build test race freshness bench gobench fmt lint python example crm30 demo ci services-up services-down toolchain announce

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: announce ## bin/loam
	go build $(BUILDARGS) -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/loam ./cmd/loam

test: announce ## all tests; LOAM_TEST_KAFKA, _REDIS, _REDIS_CLUSTER, _S3, _PYICEBERG, _SPARK and _FEAST let them use real services
	go test $(TESTARGS) ./...

# A test binary with DuckDB inside takes minutes to build for the race detector, which sees nothing of C++ anyway.
race: announce ## tests under the race detector, of the packages that don't link DuckDB
	@packages=$$($(without_duckdb)) && test -n "$$packages" && set -x && go test -race $(RACEARGS) $$packages

without_duckdb = go list -test -f '{{if eq .Name "main"}}{{.ImportPath}}{{range .Deps}} {{.}}{{end}}{{end}}' ./... \
	| awk '$$1 ~ /\.test$$/ && !/duckdb/ {sub(/\.test$$/, "", $$1); print $$1}'

freshness: announce ## how long an event takes from Kafka to Redis, held to 3 s; on real services, with nothing beside
	LOAM_TEST_ALONE=1 go test -count=1 -run '^TestFreshness$$' -v $(TESTARGS) ./internal/e2e

bench: build ## what a micro-batch costs (docs/bench.md); BENCH='--keys 5000000 --batch 50000 --duration 10m' sets flags
	bin/loam bench history $(BENCH)

gobench: announce ## Go's benchmarks; GOBENCH=Commit picks some
	go test -run '^$$' -bench '$(GOBENCH)' -benchmem $(TESTARGS) ./...

fmt: toolchain ## fail where gofmt would change a file
	@files=$$(gofmt -l .) && test -z "$$files" || { echo "gofmt -w these files:"; echo "$$files"; exit 1; }

lint: fmt ## gofmt, go vet, and golangci-lint where it is installed
	go vet ./...
	@if command -v golangci-lint >/dev/null; then set -x; golangci-lint run ./...; else \
		echo "golangci-lint isn't on PATH, so its checks were left out. To install it (5 minutes):"; \
		echo "  GOFLAGS= go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0"; fi

python: build ## the Python package: installed into build/python, checked, and tested on bin/loam; PYTESTARGS='-k types' picks some
	@python=$$(scripts/python/install.sh) && set -x && cd python && $$python -m ruff check . ../examples && \
		$$python -m ruff format --check . ../examples && \
		$$python -m mypy && LOAM_BINARY=$(CURDIR)/bin/loam $$python -m pytest $(PYTESTARGS)

example: build ## docs/example.md anew, held against the figures it tells
	@python=$$(scripts/python/install.sh) && set -x && \
		LOAM_BINARY=$(CURDIR)/bin/loam $$python examples/leakage/run.py --check docs/example/figures.json $(EXAMPLEARGS)

crm30: build ## 30 days of a CRM: 20M events from raw export to a training set, minutes by stage; EVENTS=1000000 makes it a twentieth
	scripts/crm30.sh

demo: build ## the whole main job on embedded defaults, told on the terminal
	bin/loam demo

ci: ## everything that has to pass, on real services
	.ci/run

services-up: ## start a real Kafka and a real Redis on this machine
	scripts/services/redis.sh start && scripts/services/kafka.sh start
	scripts/services/redis.sh wait && scripts/services/kafka.sh wait
	@echo 'export LOAM_TEST_KAFKA=127.0.0.1:$(KAFKA_PORT) LOAM_TEST_REDIS=127.0.0.1:$(REDIS_PORT)'

services-down: ## stop them; their data stays until scripts/services/*.sh wipe
	scripts/services/kafka.sh stop
	scripts/services/redis.sh stop

toolchain:
	@command -v go >/dev/null || { echo "loam needs Go 1.26 or later: there is no go on PATH"; exit 1; }
	@command -v "$$(go env CC)" >/dev/null || { echo "loam links DuckDB, which needs a C and C++ compiler: there is no $$(go env CC) on PATH (apt-get install g++)"; exit 1; }
	@command -v "$$(go env CXX)" >/dev/null || { echo "loam links DuckDB, which needs a C++ compiler: there is no $$(go env CXX) on PATH (apt-get install g++)"; exit 1; }

# A library that isn't in Go's build cache is what go list calls stale. Asked only while there is no binary, as it takes a second.
announce: toolchain
	@test -e bin/loam || { stale=$$(go list -f '{{.Stale}}' github.com/apache/iceberg-go/table 2>/dev/null); test "$$stale" = false; } \
		|| echo "The first build compiles Iceberg and links DuckDB: 6 to 16 minutes on two cores. Later ones take seconds."
