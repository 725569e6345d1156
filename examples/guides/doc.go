// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package guides holds the code that README.md and the guides in docs/ show, as tests that
// run it. A piece of it that is shown stands between two comments,
//
//	// snippet: breaker/after
//	...
//	// end
//
// and in the Markdown in a block that names it: ```go breaker/after. Such pieces may be in any
// test of the repository (code that needs a module of its own is in that module's), and a test
// here holds the Markdown to them. After a change of the code,
//
//	go test ./examples/guides -run Snippets -update
//
// writes it into the Markdown. Blocks that are not of Go have their tests too: see package documents.
package guides
