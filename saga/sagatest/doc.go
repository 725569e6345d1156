// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package sagatest proves things about sagas in ordinary tests.
//
// [Play] tells the story of one saga of your definition under virtual time.
//
// [Explore] searches everything that can happen to your own definition within stated bounds:
// crashes between any two steps, repeated and late requests, two nodes at once. It prints how
// many states it saw, and for a violation the shortest way there.
//
// [Crash] runs your definition on a real database and cuts the connection of its node before
// and after every statement, until another node has finished it. [Cut] cuts connections in
// tests of your own.
//
// [RunStore] holds an implementation of saga.Store to its contract, one subtest per sentence.
package sagatest
