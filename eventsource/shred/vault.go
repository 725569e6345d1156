// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package shred

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// Keys stores a key per subject. Applications use shredsql, tests [NewMemory]. It may be used
// from many goroutines and processes.
type Keys interface {
	// Create stores a key unless its subject has one already, and returns the subject's.
	Create(ctx context.Context, k Key) (Key, error)
	// Find returns the key of a subject and whether it has one.
	Find(ctx context.Context, subject string) (Key, bool, error)
	// Forget destroys the key of a subject, keeps a record of that, and returns whether there
	// was a key.
	Forget(ctx context.Context, subject, reason string) (bool, error)
	// Forgotten returns the records, the oldest first.
	Forgotten(ctx context.Context) ([]Forgotten, error)
}

// Key is the key of a subject.
type Key struct {
	Subject string
	// ID is unique over all keys, also over those of one subject.
	ID string
	// Secret is the key, wrapped by the master key if there is one.
	Secret []byte
}

// Forgotten is the record of a key that was destroyed.
type Forgotten struct {
	Subject, ID, Reason string
	At                  time.Time
}

// Config configures a [Vault]. The zero value is fit for tests.
type Config struct {
	// Masters are the master keys, 32 bytes each. The first wraps new keys; the others still
	// open what they have wrapped. None leaves the keys as they are, for stores that encrypt
	// by themselves.
	Masters [][]byte
	// Cache is how long a key stays in memory, and so how long another process can still
	// read after Forget. Zero means 10 seconds, negative not at all.
	Cache time.Duration
}

const (
	keySize = 32
	// maxCached bounds the keys in memory.
	maxCached = 10_000
)

// Vault seals and opens personal values. It is the Sealer of an eventsource.Codec, and may be
// used from many goroutines.
type Vault struct {
	keys    Keys
	masters []cipher.AEAD
	cache   time.Duration

	mu     sync.Mutex
	cached map[string]cached
	// forgets counts the calls of Forget, so that a key which was looked up before one is not
	// remembered after it.
	forgets int
}

type cached struct {
	id    string // empty if the subject has no key
	aead  cipher.AEAD
	until time.Time
}

// NewVault returns a vault with these keys.
func NewVault(keys Keys, cfg Config) (*Vault, error) {
	if keys == nil {
		return nil, errors.New("shred: Keys is nil, want a store such as shredsql's")
	}
	if cfg.Cache == 0 {
		cfg.Cache = 10 * time.Second
	}
	v := &Vault{keys: keys, cache: cfg.Cache, cached: make(map[string]cached)}
	for i, m := range cfg.Masters {
		if len(m) != keySize {
			return nil, fmt.Errorf("shred: Config.Masters[%d] has %d bytes, want %d", i, len(m), keySize)
		}
		aead, err := newAEAD(m)
		if err != nil {
			return nil, err
		}
		v.masters = append(v.masters, aead)
	}
	return v, nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("shred: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("shred: %w", err)
	}
	return aead, nil
}

// Seal encrypts every [Personal] that v, a pointer, leads to through exported fields, pointers,
// slices, maps and interfaces. A subject's first value makes its key.
func (v *Vault) Seal(ctx context.Context, value any) error {
	return walk(value, func(s sealable) error { return s.seal(ctx, v) })
}

// Open decrypts every [Personal] that v, a pointer, leads to. Those whose key was destroyed stay
// closed, without an error.
func (v *Vault) Open(ctx context.Context, value any) error {
	return walk(value, func(s sealable) error { return s.open(ctx, v) })
}

// Forget destroys the subject's key, for a reason that stays on record and must not be empty. From
// then on nothing about the subject can be read by this vault, and by others when their
// cache has run out. To forget a subject that has no key is no error.
func (v *Vault) Forget(ctx context.Context, subject, reason string) error {
	if reason == "" {
		return errors.New("shred: reason is empty, want why the subject is forgotten")
	}
	_, err := v.keys.Forget(ctx, subject, reason)
	v.mu.Lock()
	delete(v.cached, subject)
	v.forgets++
	v.mu.Unlock()
	if err != nil {
		return fmt.Errorf("shred: forget %q: %w", subject, err)
	}
	return nil
}

// Forgotten returns who was forgotten when and why, the oldest first.
func (v *Vault) Forgotten(ctx context.Context) ([]Forgotten, error) {
	list, err := v.keys.Forgotten(ctx)
	if err != nil {
		return nil, fmt.Errorf("shred: forgotten: %w", err)
	}
	return list, nil
}

// lock encrypts data about a subject.
func (v *Vault) lock(ctx context.Context, subject string, plain []byte) (*box, error) {
	if subject == "" {
		return nil, errors.New("shred: the subject of a personal value is empty, want whom it is about")
	}
	k, err := v.key(ctx, subject, true)
	if err != nil {
		return nil, err
	}
	return &box{Subject: subject, Key: k.id, Data: encrypt(k.aead, plain, "value", subject, k.id)}, nil
}

// unlock decrypts, and returns false if the key was destroyed.
func (v *Vault) unlock(ctx context.Context, b *box) ([]byte, bool, error) {
	k, err := v.key(ctx, b.Subject, false)
	if err != nil || k.id != b.Key {
		return nil, false, err
	}
	plain, err := decrypt(k.aead, b.Data, "value", b.Subject, b.Key)
	if err != nil {
		return nil, false, fmt.Errorf("shred: a value of subject %q was changed or is another's: %w", b.Subject, err)
	}
	return plain, true, nil
}

// key returns the key of a subject, and makes it if asked to.
func (v *Vault) key(ctx context.Context, subject string, make bool) (cached, error) {
	v.mu.Lock()
	c, ok := v.cached[subject]
	forgets := v.forgets
	v.mu.Unlock()
	if ok && time.Now().Before(c.until) && (c.id != "" || !make) {
		return c, nil
	}
	c = cached{until: time.Now().Add(v.cache)}
	k, found, err := v.keys.Find(ctx, subject)
	if err == nil && !found && make {
		k, err = v.create(ctx, subject)
		found = true
	}
	if err != nil {
		return c, fmt.Errorf("shred: key of %q: %w", subject, err)
	}
	if found {
		secret, err := v.unwrap(k)
		if err != nil {
			return c, err
		}
		c.id = k.ID
		if c.aead, err = newAEAD(secret); err != nil {
			return c, err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cache > 0 && v.forgets == forgets {
		if len(v.cached) >= maxCached {
			for subject := range v.cached { // any one
				delete(v.cached, subject)
				break
			}
		}
		v.cached[subject] = c
	}
	return c, nil
}

// create makes a key, or finds the one that another process was quicker to make.
func (v *Vault) create(ctx context.Context, subject string) (Key, error) {
	k := Key{Subject: subject, ID: messaging.NewID(), Secret: make([]byte, keySize)}
	_, _ = rand.Read(k.Secret) // documented never to fail
	if len(v.masters) > 0 {
		k.Secret = encrypt(v.masters[0], k.Secret, "key", k.Subject, k.ID)
	}
	return v.keys.Create(ctx, k)
}

func (v *Vault) unwrap(k Key) ([]byte, error) {
	if len(v.masters) == 0 {
		return k.Secret, nil
	}
	for _, m := range v.masters {
		if secret, err := decrypt(m, k.Secret, "key", k.Subject, k.ID); err == nil {
			return secret, nil
		}
	}
	return nil, fmt.Errorf("shred: none of the %d master keys opens the key of %q", len(v.masters), k.Subject)
}

// encrypt returns a random nonce and the ciphertext, bound to what it is of.
func encrypt(a cipher.AEAD, plain []byte, what, subject, id string) []byte {
	nonce := make([]byte, a.NonceSize(), a.NonceSize()+len(plain)+a.Overhead())
	_, _ = rand.Read(nonce)
	return a.Seal(nonce, nonce, plain, bound(what, subject, id))
}

func decrypt(a cipher.AEAD, data []byte, what, subject, id string) ([]byte, error) {
	if len(data) < a.NonceSize() {
		return nil, fmt.Errorf("shred: %d bytes, want at least %d", len(data), a.NonceSize())
	}
	return a.Open(nil, data[:a.NonceSize()], data[a.NonceSize():], bound(what, subject, id))
}

// bound separates its parts by a byte that is in no UTF-8 text.
func bound(what, subject, id string) []byte { return []byte(what + "\xff" + subject + "\xff" + id) }
