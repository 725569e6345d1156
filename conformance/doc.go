// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package conformance is the module that runs every block's public test suite
// against real databases. It is a module of its own because the drivers are
// third-party, and the root module requires none. It has no API.
//
//	scripts/services up postgres mariadb && eval "$(scripts/services env)"
//	cd conformance && go test ./...
package conformance
