// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package balance picks the instance of a service that takes the next call.
package balance
