// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package reporting

import (
	"context"
	"fmt"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// shownBuilds is how many builds the console shows.
const shownBuilds = 5

// Readers tell the console how far the builds are.
func (s *Service) Readers(ctx context.Context) ([]platform.Reader, error) {
	builds, err := s.builds(ctx, `1 = 1`)
	if err != nil {
		return nil, err
	}
	readers := make([]platform.Reader, min(len(builds), shownBuilds))
	for i := range readers {
		b := builds[i]
		readers[i] = platform.Reader{
			Stream: "orders, in the log", Reader: fmt.Sprintf("figures, build %d", b.Build), Status: b.Status,
			Position: b.Position, Applied: b.Applied, Note: b.Differences,
		}
	}
	return readers, nil
}
