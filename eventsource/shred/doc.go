// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package shred lets personal data be forgotten although the events that hold it are never
// changed: it is encrypted with a key per person, and forgetting is destroying the key.
//
//	type Registered struct {
//		Customer string
//		Name     shred.Personal[string]
//		Address  shred.Personal[Address]
//	}
//
//	vault, err := shred.NewVault(keys, shred.Config{Masters: [][]byte{master}})
//	...
//	codec, err := eventsource.NewCodec(eventsource.Type[Registered]("customer.registered.v1"), eventsource.Seal(vault))
//	...
//	event, err := codec.Encode(ctx, Registered{Customer: id, Name: shred.New(id, "Ada King")})
//	...
//	err = vault.Forget(ctx, id, "asked by letter of 3 May")
//
// The keys are in a [Keys] such as package shredsql's, best in a database of its own whose
// backups are kept as briefly as forgetting may take.
//
// # Guarantees
//
// A [Personal] value is written encrypted or not at all: encoding one that no [Vault] has
// sealed is an error, also by encoding/json directly, and formatting or logging one prints
// "[personal]". Sealed values have one form everywhere: in events, in snapshots (a state
// holds Personal fields like an event), in messages, and in a read model's column, since
// Personal is a driver.Valuer and a sql.Scanner.
//
// After [Vault.Forget] what was sealed for the subject opens nowhere any more: Get returns
// false. Everything else in the same event stays readable, streams load, projections can be
// rebuilt. Other processes keep a key in memory for at most their Config.Cache. A subject
// that comes back gets a new key, with which the old data does not open.
//
// Encryption is AES-256-GCM with a random nonce, bound to the subject and the key's ID, so a
// value cannot be moved to another subject. Keys are wrapped by a master key in the same way.
// Subject and key ID are in the clear: use an opaque ID as subject.
//
// # Caveats
//
// What left the sealed form is out of reach: a search index, a log line of Get's result, a
// mail. A read model that needs the plain text must be cleared by an event of its own.
//
// A database may keep a destroyed key for a while in free pages, write-ahead logs and backups
// (SQLite: PRAGMA secure_delete). With a master key that is kept elsewhere those are of no use
// without it.
//
// The length of the data is visible. Values that are looked for by equality cannot be
// sealed, since no two seals are equal.
package shred
