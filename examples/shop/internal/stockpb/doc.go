// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package stockpb is how inventory is spoken to: stock.proto, and what scripts/generate makes of it.
package stockpb
