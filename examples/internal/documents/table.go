// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package documents

// runs says which test runs a snippet: the folder and the name; of several, with ", " between them.
//
// Run means run, with another address, size or folder where the shown one would be in the way. There are three exceptions.
// What takes minutes is run by make test for itself: the test holds the line to that. What would stop the servers of the
// tests is run in a copy of the scripts, with servers of its own. And there may be no container engine: the lines for one are
// given to two tests, one that parses them and has the libraries of BuildKit and Compose read what they name, and one that
// runs them where there is an engine.
var runs = map[string]string{
	// The shop in one process.
	"go run ./examples/shop": "examples/shop TestReadme",
	"go run ./examples/shop load --orders 2000 --report load.json":               "examples/shop TestReadme",
	`kill -9 "$(cat shop-data/lock)"`:                                            "examples/shop TestReadme",
	"go run ./examples/shop check --load load.json":                              "examples/shop TestReadme",
	"go run ./examples/shop chaos --for 2m --seed 42":                            "examples/shop TestReadme",
	"go run ./examples/shop doctor":                                              "examples/shop TestReadme",
	"prometheus --config.file=examples/shop/deploy/observability/prometheus.yml": "examples/shop TestReadme",
	"mermaid of examples/shop/README.md":                                         "examples/shop TestReadme",

	// The shop on real servers.
	"make stack": "examples/shop TestUpTells",
	"go run ./examples/shop --stack --instances order=2,inventory=2,payment=2": "examples/shop TestUpTells",

	// The shop in containers and elsewhere.
	"docker build -f examples/shop/deploy/Dockerfile -t dovetail-shop:dev .":                            "examples/shop TestDockerfile, examples/shop/deploy TestEngine",
	"dockerfile of docs/deployment.md":                                                                  "examples/shop TestLambdaGateway",
	"cd examples/shop/deploy":                                                                           "examples/shop/deploy TestGuide, examples/shop/deploy TestEngine",
	"cp shop.env.example shop.env":                                                                      "examples/shop/deploy TestGuide, examples/shop/deploy TestEngine",
	"docker compose --env-file shop.env up --build --scale order=2":                                     "examples/shop/deploy TestGuide, examples/shop/deploy TestEngine",
	"docker compose --env-file shop.env --profile observability up -d --scale order=2":                  "examples/shop/deploy TestGuide, examples/shop/deploy TestEngine",
	"docker compose --env-file shop.env run --rm --no-deps customer check --stack":                      "examples/shop/deploy TestGuide, examples/shop/deploy TestEngine",
	"docker compose --env-file shop.env --profile observability down":                                   "examples/shop/deploy TestGuide, examples/shop/deploy TestEngine",
	"docker compose -f compose.yaml -f compose.tls.yaml --env-file shop.env up --build":                 "examples/shop/deploy TestGuide, examples/shop/deploy TestEngine",
	"go test -tags engine ./examples/shop/deploy -run TestEngine -v -timeout 90m":                       "examples/shop/deploy TestGuide",
	"kubectl apply -f examples/shop/deploy/kubernetes/namespace.yaml":                                   "examples/shop/deploy TestCluster",
	`kubectl -n shop create secret generic shop --from-literal=service-token="$(openssl rand -hex 32)"`: "examples/shop/deploy TestCluster",
	"kubectl apply -k examples/shop/deploy/kubernetes":                                                  "examples/shop/deploy TestCluster",

	// Somebody else's module.
	"go get github.com/dovetail-go/dovetail":        "examples/guides TestGet",
	"go get github.com/dovetail-go/dovetail@latest": "examples/guides TestGet",
	"go mod tidy":   "examples/guides TestGet",
	"go test ./...": "examples/guides TestGet",

	// The tests and their servers.
	"scripts/services up":            "examples/guides TestServers",
	`eval "$(scripts/services env)"`: "examples/guides TestServers",
	"scripts/services down":          "examples/guides TestServers",
	"make test":                      "examples/guides TestMakeTest",
	"SHOP_PICTURES=$PWD/.pictures go test ./examples/shop -run TestEveryPageInEveryLook -v | grep -E 'paint|files'": "examples/shop TestLongerRuns",
	"SHOP_CRASH_ORDERS=2000 go test ./examples/shop -run TestKilledShopLosesNothing -v":                             "examples/shop TestLongerRuns",
	"SHOP_STACK_ORDERS=2000 SHOP_STACK_ROUNDS=4 go test ./examples/shop -run TestStack -v":                          "examples/shop TestLongerRuns",
	"SHOP_CHAOS_FOR=20m go test ./examples/shop -run TestStackStorm -v -timeout 60m":                                "examples/shop TestLongerRuns",

	// Drawings: the names in them are there.
	"text of README.md":       "examples/guides TestDrawings",
	"text of CONTRIBUTING.md": "examples/guides TestDrawings",
}
