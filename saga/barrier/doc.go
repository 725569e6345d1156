// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package barrier guards a participant of sagas in its own database.
package barrier
