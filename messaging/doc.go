// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package messaging defines messages, and what it means to publish, receive, retry and
// give up on them, the same for every broker.
package messaging
