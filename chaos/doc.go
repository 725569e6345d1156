// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package chaos is the module of tests that break real servers and real
// processes: SIGKILL at any moment, SIGSTOP for longer than a lease, restarts of
// the broker and the database, and then the promises checked from the data. It is
// a module of its own because it needs every client library at once. It has no API.
//
// Each test starts the servers it breaks, on free ports of 127.0.0.1 and with
// their data in a directory of its own, and touches no other. The programs come
// from the distribution's packages, which `scripts/services up` installs:
//
//	scripts/services up postgres mariadb rabbitmq
//	cd chaos && go test ./...
//
// Tests are short by default. DOVETAIL_CHAOS=long runs them for minutes and with
// a hundred thousand messages. With -v each prints what it did and found; docs/proof.md
// keeps the last reports. Linux only.
package chaos
