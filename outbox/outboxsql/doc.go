// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package outboxsql keeps an outbox in PostgreSQL, MySQL or MariaDB, or SQLite.
package outboxsql
