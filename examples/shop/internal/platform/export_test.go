// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

// Routes is for tests that ask a service without a network.
var Routes = routes
