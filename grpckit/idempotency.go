// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	spb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/dovetail-go/dovetail/idempotency"
)

// IdempotencyConfig configures [Idempotency].
type IdempotencyConfig struct {
	// Scope returns who calls, from verified credentials: keys of different callers are different.
	// An error is the answer. It is required.
	Scope func(ctx context.Context) (string, error)
	// Methods reports which methods take a key, as /package.Service/Method. Nil means all.
	Methods func(method string) bool
	// Required refuses calls of those methods without a key, with InvalidArgument.
	Required bool
}

// answered is what is stored: a reply, or an error that is an answer too.
type answered struct {
	Reply []byte `json:"reply,omitempty"` // a google.protobuf.Any
	Error []byte `json:"error,omitempty"` // a google.rpc.Status
}

// Idempotency returns an interceptor that makes a unary call with the metadata [IdempotencyKey]
// once for each caller, method and key, by idempotency.Do, and answers every repetition
// with the first answer, as long as the store remembers it.
//
// An answer is a reply, or one of InvalidArgument, NotFound, AlreadyExists, FailedPrecondition,
// OutOfRange and Unimplemented; after any other error the next call is handled again. While the
// first call is under way, others are Aborted with a RetryInfo. A key that comes with another
// request is FailedPrecondition. Put it after the guards: grpc.ChainUnaryInterceptor of a later option.
func Idempotency(store idempotency.Store, cfg IdempotencyConfig) (grpc.UnaryServerInterceptor, error) {
	if store == nil {
		return nil, errors.New("grpckit: store is nil, want one")
	}
	if cfg.Scope == nil {
		return nil, errors.New("grpckit: IdempotencyConfig.Scope is nil, want a func")
	}
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if cfg.Methods != nil && !cfg.Methods(info.FullMethod) {
			return handler(ctx, req)
		}
		id, ok, err := keyOf(ctx)
		switch {
		case err != nil:
			return nil, err
		case !ok && cfg.Required:
			return nil, status.Errorf(codes.InvalidArgument, "metadata %s is missing", IdempotencyKey)
		case !ok:
			return handler(ctx, req)
		}
		scope, err := cfg.Scope(ctx)
		if err != nil {
			return nil, handled(err)
		}
		request, ok := req.(proto.Message)
		if !ok {
			return nil, status.Error(codes.Internal, "the request is no protocol buffer")
		}
		sum, err := fingerprint(request)
		if err != nil {
			return nil, handled(err)
		}
		var reply any
		key := idempotency.Key{Scope: scoped(scope, info.FullMethod), ID: id}
		stored, err := idempotency.Do(ctx, store, key, sum, func(ctx context.Context) (a answered, err error) {
			reply, err = handler(ctx, req)
			if err != nil {
				s := Status(err)
				if !isAnswer(s.Code()) {
					return a, err
				}
				a.Error, err = proto.Marshal(s.Proto())
				return a, err
			}
			m, ok := reply.(proto.Message)
			if !ok {
				return a, status.Error(codes.Internal, "the reply is no protocol buffer")
			}
			wrapped, err := anypb.New(m)
			if err != nil {
				return a, err
			}
			a.Reply, err = proto.Marshal(wrapped)
			return a, err
		})
		if err != nil {
			return nil, handled(err)
		}
		return stored.answer()
	}, nil
}

func isAnswer(c codes.Code) bool {
	switch c {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented:
		return true
	}
	return false
}

// answer returns what was stored.
func (a answered) answer() (any, error) {
	if a.Error != nil {
		var s spb.Status
		if err := proto.Unmarshal(a.Error, &s); err != nil {
			return nil, status.Error(codes.Internal, "the stored answer cannot be read")
		}
		return nil, status.ErrorProto(&s)
	}
	var wrapped anypb.Any
	if err := proto.Unmarshal(a.Reply, &wrapped); err != nil {
		return nil, status.Error(codes.Internal, "the stored answer cannot be read")
	}
	m, err := wrapped.UnmarshalNew()
	if err != nil { // of a type that this program does not know any more
		return nil, status.Error(codes.Internal, "the stored answer cannot be read")
	}
	return m, nil
}

// keyOf returns the key of the incoming call.
func keyOf(ctx context.Context) (string, bool, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get(IdempotencyKey)
	if len(values) == 0 {
		return "", false, nil
	}
	if id := values[0]; len(values) == 1 && len(id) > 0 && len(id) <= 255 {
		return id, true, nil
	}
	return "", false, status.Errorf(codes.InvalidArgument, "metadata %s is malformed, want one of 1 to 255 bytes", IdempotencyKey)
}

// scoped joins the caller and the method, so that no two pairs are the same, in at most 255 bytes.
func scoped(caller, method string) string {
	if joined, err := json.Marshal([]string{caller, method}); err == nil && len(joined) <= 255 {
		return string(joined)
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(fmt.Sprintf("%d %s%s", len(caller), caller, method))))
}

// fingerprint tells requests apart. The encoding is the same for equal requests within one version
// of a program, which is as far as repetitions of one client go; after an upgrade in between
// one may be taken for another request, and is refused.
func fingerprint(m proto.Message) ([]byte, error) {
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(encoded)
	return sum[:], nil
}
