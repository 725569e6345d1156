// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
)

// TestOperatorDecides brings about what only a person can decide, clicks what an operator clicks, and looks for the
// effect in the data of the services. What goes wrong are mistakes such as a release may have: triggers that change
// what a service writes. In the end the books balance.
func TestOperatorDecides(t *testing.T) {
	browser := openBrowser(t)
	d := &desk{data: t.TempDir()}
	d.shop = openShopWith(t, embedded.Config{Data: d.data, Packing: 24 * time.Hour}).stocked()
	d.operator = d.shop.as("operator@shop.example", "dovetail-operator")

	v := visit(t, browser, d.shop.url)
	v.mayComplain("status of 409", "status of 422")
	v.open("/sign-in?to=/ops/sagas")
	v.signsIn("operator@shop.example", "dovetail-operator")
	v.arrives("/ops/sagas")

	t.Run("a stuck saga is tried again, and the step of another is skipped", func(t *testing.T) { testRetryAndSkip(t, v.in(t), d.in(t)) })
	t.Run("an order is taken back", func(t *testing.T) { testCompensate(t, v.in(t), d.in(t)) })
	t.Run("a dead letter is replayed", func(t *testing.T) { testReplay(t, v.in(t), d.in(t)) })
	t.Run("a parked message is published after all", func(t *testing.T) { testPublishAgain(t, v.in(t), d.in(t)) })
	t.Run("a parked message is given up", func(t *testing.T) { testDiscard(t, v.in(t), d.in(t)) })
	t.Run("all of it is an operator's, and nobody else's", func(t *testing.T) { testOthersSeeNothing(t, browser, d.in(t)) })
	verifyWithin(t, check.Files(d.data), d.orders, atLast)
}

// desk is a shop whose databases can be reached.
type desk struct {
	t              *testing.T
	data           string
	shop, operator *api
	orders         []string // all that were accepted
}

func (d *desk) in(t *testing.T) *desk {
	d.t, d.shop, d.operator = t, d.shop.seenBy(t), d.operator.seenBy(t)
	return d
}

// in returns the visitor for a subtest.
func (v *visitor) in(t *testing.T) *visitor {
	v.t = t
	return v
}

// change runs statements in one transaction of a service's database.
func (d *desk) change(service string, statements ...string) {
	d.t.Helper()
	db, err := platform.OpenSQLite(filepath.Join(d.data, service+".db"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := platform.InTx(d.t.Context(), db, func(tx *sql.Tx) error {
		for _, s := range statements {
			if _, err := tx.ExecContext(d.t.Context(), s); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
}

// look reads one value from a service's database.
func (d *desk) look(service, query string, args ...any) (value string) {
	d.t.Helper()
	db, err := platform.OpenSQLiteReadOnly(filepath.Join(d.data, service+".db"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.QueryRowContext(d.t.Context(), query, args...).Scan(&value); err != nil {
		d.t.Fatalf("%s: %v", query, err)
	}
	return value
}

// finds waits until a value in a service's database is the wanted one.
func (d *desk) finds(want, service, query string, args ...any) {
	d.t.Helper()
	eventuallyWithin(d.t, atLast, func() error {
		if got := d.look(service, query, args...); got != want {
			return fmt.Errorf("%s: %s = %q, want %q", service, query, got, want)
		}
		return nil
	})
}

// order has a customer order one piece.
func (d *desk) order(customer *api, product string) string {
	d.t.Helper()
	id := customer.seenBy(d.t).place("", lineItem{"product_id": product, "quantity": 1})
	d.orders = append(d.orders, id)
	return id
}

// ends waits until an order has the status.
func (d *desk) ends(id, status string) {
	d.t.Helper()
	d.finds(status, "order", `SELECT status FROM orders WHERE id = $1`, id)
}

// decision is a line of a saga's history.
type decision struct {
	Step, Op, Outcome, Text, Who string
}

func (d *desk) history(id string) []decision {
	d.t.Helper()
	var page struct{ History []decision }
	d.operator.want(http.StatusOK, d.operator.send("GET", "/ops/api/sagas/"+id, nil, nil), &page)
	return page.History
}

// decides clicks a verb, is asked for the reason, is not let through without one, and gives it.
func (v *visitor) decides(button, why string) {
	v.t.Helper()
	v.until(button+" can be clicked", "!(document.querySelector("+quote(button)+")?.disabled ?? true)")
	v.clicks(button)
	v.until("the reason is asked for", `document.querySelector('#decision').open && document.activeElement.id === 'why'`)
	v.clicks("#decide")
	v.shows("#why-error", "Is empty, want the reason.")
	v.types("#why", why)
	v.picture("reason")
	v.clicks("#decide")
	v.until("the decision is taken", `!document.querySelector('#decision').open`)
}

// me is the operator as what is kept of decisions names them: by address and account.
func (d *desk) me() string {
	d.t.Helper()
	a := d.operator.account()
	return a.Email + " (" + a.ID + ")"
}

// tells waits until the saga's history on the page says who did what, and why.
func (v *visitor) tells(verb, who, why string) {
	v.t.Helper()
	v.until("the history says who and why", fmt.Sprintf(`[...document.querySelectorAll('#history li')].some((e) => [%s, %s, %s].every((text) => e.textContent.includes(text)))`, quote(verb), quote(who), quote(why)))
}

// opensSaga finds a saga in the list and opens it.
func (v *visitor) opensSaga(id string) {
	v.t.Helper()
	v.open("/ops/sagas?stuck=true")
	link := fmt.Sprintf("#sagas a[href='/ops/sagas/%s']", id)
	v.until("the saga is in the list of those that need an operator", "document.querySelector("+quote(link)+")")
	v.clicks(link)
	v.arrives("/ops/sagas/" + id)
	v.until("it is stuck", `document.querySelector('#status').textContent === 'stuck'`)
}

// testRetryAndSkip has inventory believe of two orders that their pieces were given back before they were sold: it
// refuses the sale, behind the pivot, where nothing can be undone any more.
func testRetryAndSkip(t *testing.T, v *visitor, d *desk) {
	customer, me := d.shop.newcomer(), d.me()
	d.change("inventory", `CREATE TRIGGER mistake AFTER INSERT ON reservations
		BEGIN INSERT INTO saga_barrier (saga, step, op, seen, at) VALUES (NEW.order_id, 'sell-stock', 'do', 1, 1 << 60), (NEW.order_id, 'sell-stock', 'undo', 1, 1 << 60); END`)
	again, skipped := d.order(customer, "p-020"), d.order(customer, "p-021")

	v.opensSaga(again)
	v.picture("stuck")
	v.until("past the pivot there is no way back", `document.querySelector('#cancel').disabled`)
	const refusals = `[...document.querySelectorAll('#history li')].filter((e) => e.textContent.includes('refused')).length`
	v.until("it was refused", refusals+` === 1`)
	v.decides("#retry", "inventory says that it is mended")
	v.tells("retry", me, "Inventory says that it is mended.")
	v.until("it was refused again", refusals+` === 2 && document.querySelector('#status').textContent === 'stuck'`)
	v.picture("refused again")

	v.opensSaga(skipped)
	v.decides("#skip", "will be booked by hand")
	v.tells("skip", me, "Will be booked by hand.")
	v.shows("#status", "completed")
	v.until("there is nothing left to decide", `['retry', 'skip', 'cancel'].every((id) => document.getElementById(id).disabled)`)
	v.picture("skipped")
	d.ends(skipped, "confirmed")
	// Nobody else has done what was skipped, and nobody has decided about the other one.
	if got := d.look("inventory", `SELECT status FROM reservations WHERE order_id = $1`, skipped); got != "reserved" {
		t.Errorf("the pieces of the skipped step are %s, want them still reserved", got)
	}
	if got := d.look("order", `SELECT status FROM orders WHERE id = $1`, again); got != "pending" {
		t.Errorf("the other order is %s, want it pending", got)
	}

	d.change("inventory", `DROP TRIGGER mistake`, `DELETE FROM saga_barrier WHERE step = 'sell-stock'`,
		`UPDATE stock SET reserved = reserved - 1, sold = sold + 1, revision = revision + 1 WHERE product_id = 'p-021'`,
		`UPDATE reservations SET status = 'sold' WHERE order_id = '`+skipped+`'`)
	v.opensSaga(again)
	v.decides("#retry", "now it is")
	v.tells("retry", me, "Now it is.")
	v.shows("#status", "completed")
	d.ends(again, "confirmed")
	d.finds("sold", "inventory", `SELECT status FROM reservations WHERE order_id = $1`, again)
	for _, want := range []decision{
		{Step: "sell-stock", Op: "retry", Outcome: "accepted", Who: me, Text: "inventory says that it is mended"},
		{Step: "sell-stock", Op: "retry", Outcome: "accepted", Who: me, Text: "now it is"},
	} {
		if history := d.history(again); !slices.Contains(history, want) {
			t.Errorf("history = %+v, want %+v in it", history, want)
		}
	}
}

func testCompensate(t *testing.T, v *visitor, d *desk) {
	customer, me := d.shop.newcomer(), d.me()
	end := d.operator.harm(chaos.ProviderDown, "", 0)
	id := d.order(customer, "p-022")
	v.open("/ops/sagas/" + id)
	v.until("payment is at work", `document.querySelector('#now').textContent.includes('authorise-payment')`)
	d.finds("reserved", "inventory", `SELECT status FROM reservations WHERE order_id = $1`, id)
	v.decides("#cancel", "the customer called")
	v.tells("cancel", me, "The customer called.")
	v.picture("compensating")
	end()
	v.until("the saga has gone back to its beginning", `document.querySelector('#status').textContent === 'compensated'`)
	v.picture("compensated")
	d.ends(id, "cancelled")
	v.open("/orders/" + id) // as the customer sees it, but for the customer's button
	v.shows("h1", "Order")
	v.until("an operator cancels elsewhere", `!document.querySelector('#cancel').checkVisibility()`)
	d.finds("released", "inventory", `SELECT status FROM reservations WHERE order_id = $1`, id)
	d.finds("released", "customer", `SELECT status FROM credit_reservations WHERE order_id = $1`, id)
	d.finds("0", "customer", `SELECT credit_reserved FROM customers WHERE id = $1`, customer.me().ID)
	d.finds("voided", "payment", `SELECT status FROM payments WHERE order_id = $1`, id)
	if got := d.look("provider", `SELECT COUNT(*) FROM charges WHERE key = $1 AND status <> 'voided'`, id); got != "0" {
		t.Errorf("%s charges at the provider, want none", got)
	}
}

// mistakeInOutbox makes a service write what it says of a topic otherwise.
func (d *desk) mistakeInOutbox(service, topic, change string) (mended func()) {
	d.t.Helper()
	d.change(service, `CREATE TRIGGER mistake AFTER INSERT ON outbox_message WHEN NEW.topic = '`+topic+`' BEGIN UPDATE outbox_message SET `+change+` WHERE id = NEW.id; END`)
	return func() {
		d.t.Helper()
		d.change(service, `DROP TRIGGER mistake`)
	}
}

const mailsOf = `SELECT COUNT(*) FROM mails WHERE customer_id = $1`

func testReplay(t *testing.T, v *visitor, d *desk) {
	mended := d.mistakeInOutbox("customer", "customer.registered", `body = substr(body, 1, length(body) - 1)`)
	customer := d.shop.newcomer().me().ID
	mended()

	v.open("/ops/messages")
	v.until("the dead letters of both who hear it are there, with the reason", `document.querySelectorAll('#dead li').length === 2 && [...document.querySelectorAll('#dead .reason')].every((e) => e.textContent.includes('JSON'))`)
	v.picture("dead letters")
	// What is wrong with it is still wrong.
	replay := func(service string) string {
		return `#dead [aria-label="Replay: customer.registered.v1 for ` + service + `.customers"]`
	}
	v.clicks(replay("notification"))
	v.until("it has failed again", `document.querySelector(`+quote(replay("notification"))+`).ariaDisabled !== 'true'`)
	d.finds("1", "notification", `SELECT COUNT(*) FROM dead_letters`)
	d.finds("0", "notification", mailsOf, customer)

	// Somebody mends the message, as new versions of the consumers would.
	var m messaging.Message
	if err := json.Unmarshal([]byte(d.look("notification", `SELECT message FROM dead_letters`)), &m); err != nil {
		t.Fatal(err)
	}
	m.Body = append(m.Body, '}')
	whole, err := json.Marshal(&m)
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"notification", "shipping"} {
		d.change(service, `UPDATE dead_letters SET message = '`+string(whole)+`'`)
		v.clicks(replay(service))
		v.until("it is dealt with", `!document.querySelector(`+quote(replay(service))+`)`)
	}
	v.until("there is no dead letter any more", `document.querySelectorAll('#dead li').length === 0 && !document.querySelector('#no-dead').hidden`)
	v.picture("replayed")
	d.finds("0", "notification", `SELECT COUNT(*) FROM dead_letters`)
	d.operator.wantProblem(404, "not-found", "", d.operator.send("POST", "/ops/api/dead-letters/notification.customers/"+m.ID+"/replay", nil, nil))
	if got := d.look("notification", mailsOf, customer); got != "1" {
		t.Errorf("%s mails to the customer, want 1", got)
	}
	if got := d.look("notification", `SELECT COUNT(*) FROM idempotency_inbox WHERE consumer = 'notification.customers' AND id = $1`, m.ID); got != "1" {
		t.Errorf("the inbox has the message %s times, want once", got)
	}
}

func testPublishAgain(t *testing.T, v *visitor, d *desk) {
	mended := d.mistakeInOutbox("customer", "customer.registered", `message_type = message_type || char(10)`)
	customer := d.shop.newcomer().me().ID
	mended()

	v.open("/ops/messages")
	v.until("the parked message is there, with its reason", `[...document.querySelectorAll('#parked .reason')].some((e) => e.textContent.includes('control characters'))`)
	v.picture("parked")
	d.finds("0", "notification", mailsOf, customer)
	d.change("customer", `UPDATE outbox_parked SET message_type = trim(message_type, char(10)) WHERE discarded = 0`)
	v.clicks("#parked [data-is=again]")
	v.until("nothing is parked any more", `document.querySelectorAll('#parked li').length === 0 && !document.querySelector('#no-parked').hidden`)
	d.finds("1", "notification", mailsOf, customer)
	d.finds("0", "customer", `SELECT COUNT(*) FROM outbox_parked`)
}

func testDiscard(t *testing.T, v *visitor, d *desk) {
	me := d.me()
	mended := d.mistakeInOutbox("payment", "payment.changed", `message_type = CASE WHEN CAST(body AS TEXT) LIKE '%authorised%' THEN message_type || char(10) ELSE message_type END`)
	id := d.order(d.shop.newcomer(), "p-023")
	d.ends(id, "confirmed")
	mended()

	v.open("/ops/messages")
	v.until("the parked message is there", `document.querySelectorAll('#parked li').length === 1`)
	// What was said of this payment later waits for it.
	const published = `SELECT COUNT(*) FROM messages WHERE topic = 'payment.changed' AND json_extract(message, '$.Key') = $1`
	d.finds("1", "payment", `SELECT COUNT(*) FROM outbox_message WHERE message_key = $1`, id)
	v.decides("#parked [data-is=discard]", "nobody listens to it")
	v.until("nothing is parked any more", `document.querySelectorAll('#parked li').length === 0 && !document.querySelector('#no-parked').hidden`)
	v.until("the page says who gave it up, and why", fmt.Sprintf(`[...document.querySelectorAll('#discarded .reason')].some((e) => e.textContent.includes('Nobody listens to it') && e.textContent.includes(%s))`, quote(me)))
	v.picture("discarded")
	d.finds("0", "payment", `SELECT COUNT(*) FROM outbox_message WHERE message_key = $1`, id)
	d.finds("1", "journal", published, id) // the later one alone
	if got, want := d.look("payment", `SELECT discard_reason FROM outbox_parked`), "nobody listens to it (by "+me+")"; got != want {
		t.Errorf("the outbox keeps the reason %q, want %q", got, want)
	}
}

func testOthersSeeNothing(t *testing.T, browser context.Context, d *desk) {
	id := d.orders[0]
	pages := []string{"/ops", "/ops/sagas", "/ops/sagas/" + id, "/ops/messages", "/ops/traces?order=" + id}
	v := visit(t, browser, d.shop.url)
	v.open(pages[0])
	v.arrives("/sign-in")
	v.member(d.shop)
	v.until("no link leads there", `document.querySelector('#ops').hidden`)
	for _, page := range pages {
		v.open(page)
		v.sees("This page is for operators")
		v.until("nothing else can be seen or clicked", `![...document.querySelectorAll('main *:is(button, input, select, a, table, svg, li, dd)')].some((e) => e.checkVisibility())`)
		v.until("no order is named", `!document.querySelector('main').textContent.includes(`+quote(id)+`)`)
	}
	v.picture("turned away")

	// Nor do those who leave the pages aside.
	customer, before := d.shop.newcomer(), len(d.history(id))
	for _, path := range []string{
		"/ops/api/sagas/" + id + "/retry", "/ops/api/sagas/" + id + "/skip", "/ops/api/sagas/" + id + "/cancel",
		"/ops/api/dead-letters/notification.customers/" + id + "/replay", "/ops/api/parked/payment/" + id + "/retry", "/ops/api/parked/payment/" + id + "/discard",
	} {
		customer.wantProblem(403, "forbidden", "", customer.send("POST", path, nil, map[string]string{"why": "to see"}))
	}
	if after := len(d.history(id)); after != before {
		t.Errorf("the saga's history has %d entries, want %d as before", after, before)
	}
}
