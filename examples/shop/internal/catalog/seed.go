// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// seedStock is how many pieces of each demonstration product there are at first.
const seedStock = 1_000

// The demonstration catalogue is every finish of every article, priced by both.
var (
	seedArticles = []struct {
		category, name string
		price          kernel.Money
	}{
		{"Hand tools", "Dovetail saw", 4_900},
		{"Hand tools", "Bench chisel", 1_850},
		{"Hand tools", "Marking gauge", 2_400},
		{"Hand tools", "Block plane", 9_800},
		{"Hand tools", "Mortise chisel", 3_200},
		{"Hand tools", "Coping saw", 1_450},
		{"Hand tools", "Spokeshave", 5_600},
		{"Workholding", "Bar clamp", 2_700},
		{"Workholding", "Bench vice", 15_900},
		{"Workholding", "Holdfast", 3_900},
		{"Workholding", "Spring clamp", 450},
		{"Measuring", "Combination square", 4_200},
		{"Measuring", "Steel rule", 900},
		{"Measuring", "Sliding bevel", 2_900},
		{"Measuring", "Dial caliper", 7_400},
		{"Finishing", "Hard wax oil", 2_100},
		{"Finishing", "Sanding block", 600},
		{"Finishing", "Card scraper", 1_100},
		{"Hardware", "Brass hinge", 350},
		{"Hardware", "Drawer runner", 1_250},
		{"Hardware", "Wood screw box", 780},
		{"Timber", "Oak board", 6_300},
		{"Timber", "Walnut board", 8_800},
		{"Timber", "Beech dowel", 250},
	}
	seedFinishes = []struct {
		name    string
		percent kernel.Money
	}{
		{"small", 70}, {"medium", 100}, {"large", 125}, {"classic", 90}, {"fine", 110},
		{"heavy", 120}, {"light", 80}, {"master", 125}, {"apprentice", 60}, {"workshop", 105},
	}
)

// seed fills an empty catalogue, all of it or nothing, and once.
func (s *Service) seed(ctx context.Context) error {
	defer s.bus.Wake()
	return platform.Exclusively(ctx, s.env.DB, func(tx *sql.Tx) error {
		var count int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM eventsource_event`).Scan(&count); err != nil || count > 0 {
			return err
		}
		// Article by article and not finish by finish, so that a page of the shop shows all of them.
		for i := range seedFinishes {
			for j, article := range seedArticles {
				finish := seedFinishes[(i+j)%len(seedFinishes)]
				price := min(max(article.price*finish.percent/100, 100), 20_000)
				e, err := s.products.codec.Encode(ctx, changed{
					ProductID: fmt.Sprintf("p-%03d", i*len(seedArticles)+j+1), Revision: 1,
					Name: article.name + ", " + finish.name, Category: article.category, Price: price, Currency: kernel.Currency, InitialStock: seedStock,
				})
				if err != nil {
					return err
				}
				if err := s.products.log.Append(ctx, tx, fmt.Sprintf("%sp-%03d", streamPrefix, i*len(seedArticles)+j+1), eventsource.None, e); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
