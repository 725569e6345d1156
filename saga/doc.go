// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package saga runs business transactions that span several services and always end
// done or undone.
package saga
