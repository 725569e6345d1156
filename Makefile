# The work is in scripts/, one file per task; these are their names.
# make help lists them.

.DEFAULT_GOAL := help
.PHONY: help test quick fmt vet lint race tidy release-check services-up services-down stack stack-down bench bench-blocks fuzz sim chaos

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

test: ## everything: format, vet, lint, release, all tests with -race against real servers
	@scripts/test

quick: ## vet and the root module's short tests, under a minute
	go vet ./...
	go test -short ./...

fmt: ## gofmt every Go file
	@git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 -r gofmt -l -w

vet: ## go vet in every module
	@scripts/each go vet ./...

lint: ## golangci-lint in every module (built once, from tools/go.mod)
	@scripts/lint

race: ## only the tests of make test: all modules, -race, real servers
	@scripts/test services tests

tidy: ## go mod tidy in every module, with our own modules taken from here
	@scripts/tidy

release-check: ## pack every module and use it from outside, as a user would
	@scripts/release-check

services-up: ## install and start the test servers (NAMES="postgres redis" for some)
	@scripts/services up $(NAMES)

stack: ## start the servers of the shop's stack, with Docker Compose where an engine runs, and write its settings for shop --stack
	@scripts/stack

stack-down: ## stop them; their data stays
	@scripts/stack down

services-down: ## stop the test servers; their data stays
	@scripts/services down $(NAMES)

bench: ## dovetail beside its peers in one run; writes bench/README.md (ROUNDS=9, ONLY=guards)
	@scripts/services up redis postgres rabbitmq consul
	@eval "$$(scripts/services env)" && cd bench && GOWORK=off go run . -rounds $(or $(ROUNDS),9) -only "$(ONLY)"

bench-blocks: ## benchmarks in the packages (PKG=./retry for one, COUNT=10 for benchstat)
	go test -run '^$$' -bench . -benchmem -count $(or $(COUNT),1) $(or $(PKG),./...)

fuzz: ## every fuzz test for FUZZTIME each (30s)
	@scripts/fuzz $(or $(FUZZTIME),30s)

sim: ## the simulations, each of SEEDS=100000 courses, with a report
	DOVETAIL_SIM_SEEDS=$(or $(SEEDS),100000) go test -v -timeout 0 -run 'TestSimulation$$' ./outbox ./idempotency

chaos: ## processes and servers killed for about half an hour, with the checkers' reports (PKG=./outbox for one)
	@scripts/services up postgres mariadb rabbitmq
	@eval "$$(scripts/services env)" && cd chaos && DOVETAIL_CHAOS=long go test -v -timeout 0 -parallel 1 $(or $(PKG),./outbox ./rabbit ./saga)
