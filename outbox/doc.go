// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package outbox publishes messages if and only if the transaction commits that they
// belong to.
package outbox
