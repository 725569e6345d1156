// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// front stands before a shop and gives some answers itself: those that a shop gives at its worst, or seldom.
type front struct {
	*httptest.Server
	t *testing.T

	mu      sync.Mutex
	answers map[string]frontAnswer // by method and path
	asked   map[string][]http.Header
	gone    bool
}

type frontAnswer struct {
	status int
	after  int // seconds, of Retry-After
	body   string
	times  int // that it is given; 0 is for ever
	// made makes the body of the query, if it is not nil.
	made func(url.Values) string
}

func standBefore(t *testing.T, shop *api) *front {
	t.Helper()
	behind, err := url.Parse(shop.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(behind)
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusServiceUnavailable) } // of a request that was left
	f := &front{t: t, answers: map[string]frontAnswer{}, asked: map[string][]http.Header{}}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, own, gone := f.take(r)
		switch {
		case gone:
			panic(http.ErrAbortHandler)
		case !own:
			proxy.ServeHTTP(w, r)
			return
		}
		if answer.after > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(answer.after))
		}
		stream := strings.HasPrefix(answer.body, "event: ")
		w.Header().Set("Content-Type", map[bool]string{true: "text/event-stream", false: "application/json"}[stream])
		w.WriteHeader(answer.status)
		_, _ = w.Write([]byte(answer.body))
		if stream { // which stays open
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(func() {
		f.CloseClientConnections() // of the streams
		f.Close()
	})
	return f
}

func (f *front) take(r *http.Request) (answer frontAnswer, own, gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := r.Method + " " + r.URL.Path
	f.asked[name] = append(f.asked[name], r.Header.Clone())
	answer, own = f.answers[name]
	switch answer.times {
	case 0:
	case 1:
		delete(f.answers, name)
	default:
		less := answer
		less.times--
		f.answers[name] = less
	}
	if answer.made != nil {
		answer.body = answer.made(r.URL.Query())
	}
	return answer, own, f.gone
}

func (f *front) set(request string, answer frontAnswer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[request] = answer
}

// says has a request answered with this body, a stream if it begins with an event.
func (f *front) says(request, body string) {
	f.set(request, frontAnswer{status: http.StatusOK, body: body})
}

// refuses has requests answered with a problem.
func (f *front) refuses(status, after int, detail string, requests ...string) {
	for _, request := range requests {
		f.set(request, frontAnswer{status: status, after: after, body: fmt.Sprintf(`{"title":%q,"status":%d,"detail":%q}`, http.StatusText(status), status, detail)})
	}
}

// passes has all requests go to the shop again, and forgets what was asked.
func (f *front) passes() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.answers)
	clear(f.asked)
	f.gone = false
}

// leaves is a gateway that is not there.
func (f *front) leaves() {
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
	f.CloseClientConnections()
}

// heard returns the headers of all requests of this kind.
func (f *front) heard(request string) []http.Header {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]http.Header{}, f.asked[request]...)
}

// hurries makes the pages that are opened from now on wait a twentieth of what they would, and tell how long that is.
func (v *visitor) hurries() *visitor {
	v.t.Helper()
	if _, err := chromedp.Call(v.ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: `const later = setTimeout; window.waits = []; window.setTimeout = (fn, ms, ...args) => { waits.push(ms); return later(fn, ms / 20, ...args); };`,
	}); err != nil {
		v.fail("hurry: %v", err)
	}
	return v
}

// checkState holds what a page has become to the rules, for eyes and ears.
func (v *visitor) checkState(page string) {
	v.t.Helper()
	v.checkRules(page)
	v.checkOutline(page)
}

const (
	busyText    = "the shop is busy; please try again"
	tooManyText = "that is more than your share; please slow down"
)

// testPagesInBadTimes is what people see of a shop that has too much to do, that is not there, or of which a part is
// away: they are told so in whole sentences, told what to do if there is anything, and the page goes on by itself
// wherever it can.
func testPagesInBadTimes(t *testing.T, browser context.Context, shop *api) {
	f := standBefore(t, shop)
	// comes is a customer before a shop in good times.
	comes := func(t *testing.T) *visitor {
		f.passes()
		v := visit(t, browser, f.URL)
		v.mayComplain("status of", "net::ERR_")
		return v
	}
	signIn := func(v *visitor, to, email, password string) {
		v.open("/sign-in?to=" + url.QueryEscape(to))
		v.signsIn(email, password)
		v.arrives(to)
	}

	t.Run("too many sign in", func(t *testing.T) {
		v := comes(t)
		v.open("/sign-in")
		f.refuses(429, 7, tooManyText, "POST /api/sessions")
		v.types("#email", "ada@shop.example")
		v.types("#password", "dovetail-ada")
		v.evaluate(`const form = document.querySelector('#form'); form.requestSubmit(); form.requestSubmit()`)
		v.shows(".error.whole", "That is more than your share; please slow down. Please wait 7 seconds.")
		if n := len(f.heard("POST /api/sessions")); n != 1 {
			t.Errorf("the form was sent %d times, want once", n)
		}
		v.checkState("sign-in, refused")
		v.picture("sign-in")
		f.passes()
		v.clicks("[type=submit]")
		v.arrives("/")
		v.evaluate(`history.back()`)
		v.until("there is no way back to the sign-in", `location.pathname !== '/sign-in'`)
	})

	t.Run("too many order", func(t *testing.T) {
		v := comes(t).member(&api{t: t, url: f.URL})
		v.fills("p-001", "p-002")
		v.hurries()
		v.open("/checkout")
		v.sees("Your free credit")
		f.refuses(429, 3, tooManyText, "POST /api/orders")
		v.evaluate(`window.said = []; new MutationObserver(() => said.push(document.querySelector('#progress').textContent)).observe(document.querySelector('#progress'), { childList: true })`)
		v.clicks("#place")
		v.shows("#place", "Ask again")
		v.until("it is said what happens", `said.includes('That is more than your share; please slow down. Please wait 3 seconds. Asking again with the same key (2 of 6) …')`)
		v.until("it waits for as long as it was told to", `waits.filter((ms) => ms === 3000).length >= 3 && waits.includes(8000)`)
		v.sees("Your order may have been taken or not: ask again, it will not be made twice.")
		v.checkState("checkout, unsure")
		v.picture("checkout")
		keys := map[string]int{}
		for _, h := range f.heard("POST /api/orders") {
			keys[h.Get("Idempotency-Key")]++
		}
		if len(keys) != 1 || len(f.heard("POST /api/orders")) != 6 {
			t.Errorf("sent with keys %v, want six times with one", keys)
		}
		f.passes()
		v.clicks("#place")
		v.arrives("/orders/")
		v.until("nothing is left to ask for", `localStorage.attempt === undefined`)
		if h := f.heard("POST /api/orders"); len(h) == 0 || keys[h[0].Get("Idempotency-Key")] == 0 {
			t.Errorf("asked again with %v, want the key from before, %v", h, keys)
		}
	})

	t.Run("an attempt is its own account's, and not for ever", func(t *testing.T) {
		v := comes(t).member(&api{t: t, url: f.URL})
		v.fills("p-003")
		for _, change := range []string{`a.account = 'somebody else'`, `a.at -= 13 * 3600 * 1000`} {
			v.open("/basket")
			v.evaluate(`const a = { key: 'k', account: JSON.parse(sessionStorage.session).account.id, at: Date.now(), lines: [{ id: 'p-004', name: 'Not mine', price: 1, currency: 'EUR', quantity: 1 }], method: 'pm_visa', body: '{}' };
				` + change + `; localStorage.attempt = JSON.stringify(a)`)
			v.open("/checkout")
			v.sees("Your free credit")
			v.until("it is the basket that can be ordered", `!document.querySelector('#lines').textContent.includes('Not mine')`)
		}
		f.refuses(422, 0, "is not a payment method", "POST /api/orders")
		v.clicks("#place")
		v.shows(".error.whole", "Is not a payment method.")
		v.until("what was refused is not asked for again", `localStorage.attempt === undefined && document.querySelector('#place').ariaDisabled !== 'true'`)
	})

	t.Run("a session ends", func(t *testing.T) {
		v := comes(t)
		email, password := newAccount(shop)
		signIn(v, "/", email, password)
		v.fills("p-001")
		v.open("/checkout")
		v.sees("Your free credit")
		f.refuses(401, 0, "the token is not valid, or no longer; sign in again", "POST /api/orders")
		v.clicks("#place")
		v.arrives("/sign-in")
		v.sees("Your session has ended: please sign in again.")
		v.checkState("sign-in, ended")
		v.picture("ended")
		key := f.heard("POST /api/orders")[0].Get("Idempotency-Key")
		f.passes()
		v.signsIn(email, password)
		v.arrives("/orders/") // with what was asked for
		if h := f.heard("POST /api/orders"); len(h) != 1 || h[0].Get("Idempotency-Key") != key {
			t.Errorf("asked with %v, want once, with the key from before, %s", h, key)
		}
		v.open("/basket") // which does not notice
		v.evaluate(`const s = JSON.parse(sessionStorage.session); s.expires_at = new Date(Date.now() - 1000); sessionStorage.session = JSON.stringify(s)`)
		v.open("/orders")
		v.arrives("/sign-in")
		v.sees("Your session has ended")
		v.open("/orders")
		v.arrives("/sign-in")
		v.until("who was not signed in is not told so", `!document.querySelector('#ended').checkVisibility()`)

		signIn(v, "/ops", "operator@shop.example", "dovetail-operator")
		v.until("the console is there", `document.querySelectorAll('#map .node-box').length === 10`)
		f.refuses(401, 0, "the token is not valid, or no longer; sign in again", "GET /ops/api/live")
		f.CloseClientConnections()
		v.arrives("/sign-in")
		v.sees("Your session has ended")
		f.passes()
		v.open("/ops/traces?order=an-order")
		v.arrives("/sign-in")
		v.signsIn("operator@shop.example", "dovetail-operator")
		v.arrives("/ops/traces")
		v.until("it is where one wanted to go", `location.search === '?order=an-order'`)
		v.sees("No service remembers a trace of that order.")
	})

	t.Run("a service is away", func(t *testing.T) {
		v := comes(t).member(&api{t: t, url: f.URL}).hurries()
		v.fills("p-001")
		for _, p := range []struct{ path, request, back string }{
			{"/", "/api/products", `document.querySelectorAll('.card:not(.blank)').length === 24 && document.querySelector('#summary').textContent.startsWith('24 products')`},
			{"/products/p-001", "/api/products/p-001", `document.querySelector('#problem').textContent === '' && document.querySelector('#add').checkVisibility() && document.querySelector('#name').textContent.startsWith('Dovetail saw')`},
			{"/mails", "/api/me/mails", `document.querySelector('#problem').textContent === '' && document.querySelectorAll('#mails li').length === 1`},
			{"/orders", "/api/me/orders", `document.querySelector('#problem').textContent === '' && document.querySelector('#empty').checkVisibility()`},
		} {
			f.refuses(503, 1, busyText, "GET "+p.request, "GET /api/categories")
			v.open(p.path)
			v.sees("The shop is busy; please try again. Trying again …")
			v.until("nothing is said that is not known", `[...document.querySelectorAll('#add, #empty, #paging')].every((e) => !e.checkVisibility())`)
			v.checkState(p.path + ", away")
			v.picture("away")
			f.set("GET "+p.request, frontAnswer{status: http.StatusOK, body: `{"items":[`})
			v.sees("The answer of the shop broke off. Trying again …")
			f.leaves()
			v.sees("The shop does not answer. Is it running? Trying again …")
			f.passes()
			v.until(p.path+" goes on by itself", p.back)
		}
		f.set("GET /api/me", frontAnswer{status: 503, times: 2})
		v.open("/checkout")
		v.sees("Your free credit") // what changes nothing is asked for three times
	})

	t.Run("an order that cannot be cancelled", func(t *testing.T) {
		v := comes(t).member(&api{t: t, url: f.URL})
		v.orders("p-005", "pm_visa")
		v.shows("#status", "confirmed")
		v.until("all of it is known", `document.querySelectorAll('#steps [data-state=done]').length === 7 && document.querySelectorAll('#mails li').length > 0`)
		order, err := chromedp.Run(v.ctx, chromedp.Evaluate[string](`location.pathname`))
		if err != nil {
			t.Fatal(err)
		}
		cancel := "POST /api" + order + "/cancel"
		f.refuses(422, 0, "the parcel has left", cancel)
		v.clicks("#cancel")
		v.until("the question proposes to keep it", `document.activeElement.value === 'keep'`)
		v.clicks("#sure [value=cancel]")
		v.shows("#refused", "The parcel has left.")
		v.until("it can be asked for again", `document.querySelector('#cancel').textContent === 'Cancel the order' && !document.querySelector('#cancel').disabled`)
		v.checkState("order, not cancelled")
		v.picture("not-cancelled")
		v.clicks("#cancel")
		v.until("the question is there again", `document.querySelector('#sure').open`)
		v.evaluate(`document.querySelector('#sure').requestClose()`) // as a phone's way back does
		v.until("the question is gone", `!document.querySelector('#sure').open`)

		v.evaluate(`window.before = document.querySelector('#moments').textContent; document.querySelector('#connection').dataset.seen = ''; new MutationObserver(() => { document.querySelector('#connection').dataset.seen = 'lost'; }).observe(document.querySelector('#connection'), { childList: true })`)
		f.CloseClientConnections()
		v.until("the connection was lost and is back", `document.querySelector('#connection').dataset.seen === 'lost' && document.querySelector('#connection').hidden`)
		v.until("every moment is there once", `document.querySelector('#moments').textContent === window.before`)
		if n := len(f.heard(cancel)); n != 1 {
			t.Errorf("cancelled %d times, want once: to close the question is no answer to it", n)
		}

		// What else may be known of an order: the stream and the page are the front's.
		id := strings.TrimPrefix(order, "/orders/")
		at := time.Now().UTC()
		moment := func(after time.Duration, what, detail string) string {
			return fmt.Sprintf("event: moment\ndata: {\"at\":%q,\"what\":%q,\"detail\":%q}\n\n", at.Add(after).Format(time.RFC3339Nano), what, detail)
		}
		f.says("GET /api"+order+"/events", moment(time.Second, "reserve-credit failed", "")+moment(2*time.Second, "reserve-credit failed", "")+moment(92*time.Second, "reserve-credit done", "")+
			moment(93*time.Second, "reserve-stock failed", "breaker inventory: open (retry after 2.578552724s)")+
			fmt.Sprintf("event: status\ndata: {\"id\":%q,\"status\":\"pending\",\"created_at\":%q,\"currency\":\"EUR\",\"total\":100,\"payment_method\":\"pm_visa\",\"items\":[]}\n\n", id, at.Format(time.RFC3339Nano)))
		f.says("GET /api"+order, fmt.Sprintf(`{"id":%q,"status":"pending","partial":["payment","shipment"]}`, id))
		f.says("GET /api/me/mails", `{"items":[{"subject":"Of another one","body":"order x","at":"2026-01-01T00:00:00Z"}]}`)
		v.open(order)
		v.shows("#steps li:nth-child(1) [data-is=state]", "done at the 3rd attempt")
		v.shows("#steps li:nth-child(1) [data-is=when]", "after 1 min 32 s")
		v.shows("#steps li:nth-child(2) [data-is=state]", "attempt 1 failed, trying again …")
		v.shows("#payment", "not known: the payment service does not answer")
		v.shows("#shipment", "not known: the shipping service does not answer")
		v.shows("#moments tr:last-child [data-is=detail]", "breaker inventory: open (retry after 3s)")
		v.until("mails about other orders are not shown", `!document.querySelector('#post').checkVisibility()`)
		f.passes()
		f.refuses(404, 0, "there is no order", "GET /api"+order+"/events")
		v.open(order)
		v.shows("#connection", "There is no such order among yours.")
	})
}

// testConsoleInBadTimes shows an operator what a healthy shop does not have: broken invariants, services that are down,
// breakers that are half open, decisions that are refused, lists of many pages. The answers are the front's.
func testConsoleInBadTimes(t *testing.T, browser context.Context, shop *api) {
	f := standBefore(t, shop)
	v := visit(t, browser, f.URL)
	v.mayComplain("status of", "net::ERR_")
	v.open("/sign-in?to=/mails") // where an operator finds nothing, and asks for nothing
	v.signsIn("operator@shop.example", "dovetail-operator")
	v.arrives("/mails")

	now := time.Now().UTC().Add(-30 * time.Minute) // the shop's clock is behind that of the browser
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339Nano) }
	traffic := func(after time.Duration, payment bool) string {
		return fmt.Sprintf(`{"at":%q,"seconds":1,"services":[
			{"service":"gateway","rate":12,"errors":0.5,"p50_seconds":0.004,"p99_seconds":0.25,"instances":[{"instance":"gateway-1","up":true}]},
			{"service":"order","rate":3,"errors":0,"p50_seconds":0.0052,"p99_seconds":70,"instances":[{"instance":"order-1","up":true},{"instance":"order-2","up":false}],"outbox":{"waiting":2,"oldest_seconds":3,"parked":0,"dead_letters":4}},
			{"service":"payment","rate":0,"errors":0,"p50_seconds":0,"p99_seconds":0,"instances":[{"instance":"payment-1","up":%t}]}],
			"calls":[{"from":"gateway","to":"order","rate":3,"errors":0,"p50_seconds":0.001,"p99_seconds":0.002,"breaker":{"state":"half-open","opened":1,"refused":2}},
			{"from":"order","to":"payment","rate":0,"errors":0,"p50_seconds":0,"p99_seconds":0,"breaker":{"state":"open","opened":1,"refused":2}}],
			"flows":[{"service":"order","topic":"order.placed","rate":5,"failed":0,"messages":10}],
			"groups":[{"service":"order","group":"order.payments","known":false,"behind":20,"oldest_seconds":30,"delay_seconds":1,"consumers":0}],
			"readers":[{"service":"reporting","stream":"events","reader":"figures, build 1","status":"serving","position":7,"end":9,"behind_seconds":3,"applied":7}],
			"totals":{"rate":12,"errors":7,"p50_seconds":0.004,"p99_seconds":0.25,"placed":3,"confirmed":2,"outbox_seconds":3,"outbox_waiting":2,"behind":20,"parked":0,"dead_letters":4,"sagas":6,"stuck":5}}`, at(after), payment)
	}
	event := func(name, data string) string {
		return "event: " + name + "\ndata: " + strings.ReplaceAll(strings.ReplaceAll(data, "\n", ""), "\t", "") + "\n\n"
	}
	invariants := func(d time.Duration, items string) string {
		return fmt.Sprintf(`{"at":%q,"resting":false,"items":[%s]}`, at(d), items)
	}
	const holds = `{"number":1,"name":"every order ends","ok":true,"checked":"2 orders","violations":[]}`
	const broken = `{"number":2,"name":"nobody pays twice","ok":false,"checked":"2 payments","violations":["order x was paid twice"]}`
	faults := func(ids ...string) string {
		all := make([]string, len(ids))
		for i, id := range ids {
			all[i] = fmt.Sprintf(`{"id":%q,"kind":"slow","service":"payment","amount":250,"started_at":%q,"ends_at":%q}`, id, at(0), at(time.Hour))
		}
		return `{"kinds":[{"kind":"slow","title":"Answer slowly","target":"service","services":["payment"],"amount":{"unit":"ms","min":1,"max":9000,"default":250},"seconds":{"max":600,"default":60}},
			{"kind":"provider-down","title":"Provider down","target":"provider","services":[],"seconds":{"max":600,"default":60}}],
			"instances":["payment-1","payment-2"],"faults":[` + strings.Join(all, ",") + `]}`
	}
	load := `{"rate":3,"placed":1200,"accepted":0,"confirmed":0,"refused":0,"failed":0,"retries":0,"in_flight":0}`

	t.Run("the overview", func(t *testing.T) {
		v := v.in(t)
		live := event("past", "[]") + event("traffic", traffic(0, false)) + event("faults", faults("1", "2")) + event("load", load) + event("invariants", invariants(0, holds+","+broken))
		f.says("GET /ops/api/live", live)
		f.refuses(503, 1, busyText, "GET /ops/api/traffic", "GET /ops/api/chaos", "GET /ops/api/load", "GET /ops/api/invariants")
		v.open("/ops")
		v.shows("#verdict", "1 broken")
		v.until("it looks broken", `document.querySelector('#verdict').dataset.status === 'down' && document.querySelectorAll('#invariants [data-ok=false]').length === 1 && document.querySelector('#invariants [data-ok=false] use').href.baseVal.endsWith('#refused')`)
		v.sees("order x was paid twice")
		v.sees("Something is under way")
		v.until("the map says who is down, and half", `document.querySelector('#map svg').ariaLabel.includes('Down: payment. Open breakers: order to payment.') &&
			['down', 'partly', 'up'].every((state, i) => document.querySelector('#map [data-service=' + ['payment', 'order', 'gateway'][i] + ']').dataset.state === state)`)
		v.until("and in words", `['does not answer', '4 dead', 'half-open', '0.5/s errors', '12/s · p99 250 ms'].every((text) => document.querySelector('#map').textContent.includes(text))`)
		v.until("one instance is up and one is not", `[...document.querySelectorAll('[data-service=order] .instances circle')].map((c) => c.dataset.up).join() === 'true,false'`)
		v.until("events flow", `[...document.querySelectorAll('#map .flow.message')].some((e) => e.dataset.speed === '2')`)
		v.until("the tables say the same", `[...document.querySelectorAll('#services [data-is=state]')].map((e) => e.textContent).join() === 'ready,partly ready,down'`)
		v.until("the figures are beside the charts", `[...document.querySelectorAll('#charts .value')].map((e) => e.textContent.trim()).join() === 'requests 12/s,errors 7/s,p50 4.0 ms,p99 250 ms,placed 3/s,confirmed 2/s,running 6,stuck 5,age 3.0 s,outboxes 2,queues 20,dead 4'`)
		v.until("two faults can be ended at once", `document.querySelector('#end-all').checkVisibility() && document.querySelectorAll('#faults li').length === 2`)
		v.until("it is said for how long, by the shop's clock", `/^3[56]\d\d s left$/.test(document.querySelector('#faults [data-is=left]').textContent)`)
		v.until("a fault has what is usual", `document.querySelector('#amount').value === '250' && document.querySelector('#unit').textContent === ', ms' && [...document.querySelector('#service').options].map((o) => o.value).join() === 'payment,payment-1,payment-2'`)
		v.until("the load is where it is", `document.querySelector('#rate').value === '3' && document.querySelector('#load-figures [data-is=placed]').textContent === '1,200'`)
		v.checkState("ops, broken")
		v.checkLook("ops, broken", "light")
		v.picture("broken")

		f.refuses(403, 0, "only in a shop of one's own", "PUT /ops/api/load", "DELETE /ops/api/chaos")
		v.evaluate(`const rate = document.querySelector('#rate'); rate.value = 9; rate.dispatchEvent(new Event('input'))`)
		v.shows("#toast", "Only in a shop of one's own.")
		v.clicks("#end-all")
		v.until("it is said that it was refused", `document.querySelector('#toast').textContent !== ''`)
		f.refuses(422, 0, "is above 600", "POST /ops/api/chaos")
		v.evaluate(`const kind = document.querySelector('#kind'); kind.value = 'provider-down'; kind.dispatchEvent(new Event('change'))`)
		v.until("nobody is asked for where there is nobody to choose", `!document.querySelector('#service').checkVisibility() && !document.querySelector('#amount').checkVisibility()`)
		v.evaluate(`const form = document.querySelector('#chaos'); form.requestSubmit(); form.requestSubmit()`)
		v.shows("#chaos .error.whole", "Is above 600.")
		if puts, posts := len(f.heard("PUT /ops/api/load")), len(f.heard("POST /ops/api/chaos")); puts != 1 || posts != 1 {
			t.Errorf("%d loads and %d faults were asked for, want one of each", puts, posts)
		}

		// Held, nothing moves.
		v.clicks("#pause")
		v.shows("#pause", "Go on")
		f.says("GET /ops/api/live", strings.Replace(live, traffic(0, false), "", 1)+event("traffic", strings.Replace(traffic(2*time.Second, true), `"rate":12`, `"rate":15`, 2))+event("invariants", invariants(time.Second, holds)))
		f.CloseClientConnections()
		v.shows("#verdict", "all hold")
		v.until("the rest stands still", `document.querySelector('#map').matches('.still') && document.querySelector('#services').textContent.includes('down') && document.querySelector('#charts .value').textContent.trim() === 'requests 12/s'`)
		v.clicks("#pause")
		v.until("it goes on with what came meanwhile", `document.querySelector('#charts .value').textContent.trim() === 'requests 15/s' && !document.querySelector('#map').matches('.still')`)

		// What was checked long ago may have changed since.
		f.says("GET /ops/api/live", event("traffic", traffic(4*time.Second, true))+event("invariants", invariants(-time.Hour, holds)))
		f.CloseClientConnections()
		v.shows("#verdict", "not known")
		v.sees("and has not been looked at since.")
		v.picture("not-known")
	})

	t.Run("an answer that comes after its successor", func(t *testing.T) {
		v := v.in(t)
		f.passes()
		f.says("GET /ops/api/live", event("past", "[]"))
		f.says("GET /ops/api/chaos", faults())
		f.says("GET /ops/api/load", load)
		f.says("GET /ops/api/invariants", invariants(0, holds))
		held := v.hold("*/ops/api/load")
		v.open("/ops")
		<-held
		v.evaluate(`window.rates = []; new MutationObserver(() => { rates.push(document.querySelector('#rate-value').textContent); }).observe(document.querySelector('#rate-value'), { childList: true })`)
		more := strings.Replace(load, `"rate":3`, `"rate":7`, 1)
		f.says("GET /ops/api/load", more)
		f.says("GET /ops/api/live", event("load", more))
		f.CloseClientConnections()
		v.until("the stream brings the load", `document.querySelector('#rate').value === '7'`)
		v.release()
		v.shows("#verdict", "not known") // which is asked for after the load, and was so half an hour ago
		if !v.evaluate(`return rates.join() === '7'`) {
			t.Error("the page went back to the load of before, want the one that the stream has told")
		}
	})

	t.Run("sagas of many pages", func(t *testing.T) {
		v := v.in(t)
		f.passes()
		f.says("GET /ops/api/live", event("past", "[]"))
		f.says("GET /ops/api/sagas", `{"items":[]}`)
		v.open("/ops/sagas")
		v.sees("There is none such.")
		v.checkState("sagas, none")
		rows := make([]string, 100)
		for i := range rows {
			rows[i] = fmt.Sprintf(`{"id":"s-%03d","name":"place-order","status":"running","updated":%q}`, i, at(0))
		}
		f.says("GET /ops/api/sagas", `{"items":[`+strings.Join(rows, ",")+`]}`)
		v.evaluate(`const status = document.querySelector('#status'); status.value = 'running'; status.dispatchEvent(new Event('change'))`)
		v.sees("100 or more, the newest first")
		var asked []string // guarded by the front
		f.set("GET /ops/api/sagas", frontAnswer{status: http.StatusOK, made: func(q url.Values) string {
			asked = append(asked, q.Encode())
			switch q.Get("after") {
			case "":
				return `{"items":[` + strings.Join(rows, ",") + `]}`
			case "s-099":
				return `{"items":[` + strings.ReplaceAll(strings.Join(rows, ","), "s-", "t-") + `]}`
			}
			return `{"items":[{"id":"u-1","name":"place-order","status":"completed","updated":"2026-01-01T00:00:00Z"}]}`
		}})
		v.clicks("#more")
		v.sees("200 or more, the newest first")
		v.clicks("#more")
		v.sees("201, the newest first")
		v.until("there are no more", `!document.querySelector('#more').checkVisibility() && document.querySelectorAll('#sagas tr').length === 201`)
		v.evaluate(`const begins = document.querySelector('#begins'); begins.value = 's-0'; begins.dispatchEvent(new Event('input'))`)
		v.sees("100 or more, the newest first")
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, want := range []string{"after=t-099&status=running", "id=s-0&status=running"} {
			if !slices.Contains(asked, want) {
				t.Errorf("asked with %q, want %s among them", asked, want)
			}
		}
	})

	t.Run("a saga that is stuck", func(t *testing.T) {
		v := v.in(t)
		f.passes()
		f.says("GET /ops/api/live", event("past", "[]"))
		entry := func(step, op, outcome, text, who string) string {
			return fmt.Sprintf(`{"at":%q,"step":%q,"op":%q,"attempt":1,"outcome":%q,"text":%q,"who":%q,"took_seconds":0.1,"node":"order-1"}`, at(time.Second), step, op, outcome, text, who)
		}
		me, err := chromedp.Run(v.ctx, chromedp.Evaluate[string](`JSON.parse(sessionStorage.session).account.id`))
		if err != nil {
			t.Fatal(err)
		}
		saga := func(fields, history string) string {
			return fmt.Sprintf(`{"saga":{"id":"o-1","name":"place-order","version":1,"created":%q,"updated":%q,%s},
				"steps":[{"name":"reserve","undo":true},{"name":"pay","pivot":true},{"name":"send"}],"history":[%s],"data":{}}`, at(0), at(time.Second), fields, history)
		}
		f.says("GET /ops/api/sagas/o-1", saga(`"status":"running","step":"send","stuck":"breaker shipping: open (retry after 2.578552724s)","attempt":9`, strings.Join([]string{
			entry("reserve", "do", "failed", "no answer", ""), entry("reserve", "do", "done", "", ""), entry("pay", "do", "done", "", ""), entry("send", "do", "failed", "no answer", ""), entry("send", "retry", "accepted", "try it", me),
		}, ",")))
		v.open("/ops/sagas/o-1")
		v.shows("#reason", "Breaker shipping: open (retry after 3s).")
		v.shows("#verbs-note", "It has failed often. It goes on trying by itself, and waits for your decision no less.")
		v.until("past the pivot it cannot be compensated", `document.querySelector('#cancel').disabled && !document.querySelector('#retry').disabled && !document.querySelector('#skip').disabled`)
		v.until("the plan shows where, for eyes and ears", `document.querySelector('#plan [data-state=stuck] .title').textContent === 'send' && document.querySelector('#plan svg').ariaLabel === 'reserve: done, try 2; pay: done; send: stuck.'`)
		v.until("it is said who has decided", `document.querySelector('#history').textContent.includes('by you, ')`)
		v.checkState("saga, stuck")
		f.refuses(409, 0, "somebody was faster", "POST /ops/api/sagas/o-1/skip", "POST /ops/api/sagas/o-1/retry")
		v.clicks("#skip")
		v.sees("The current step counts as done, because somebody has done it by hand or can do without.")
		v.types("#why", "done by hand")
		v.clicks("#decide")
		v.shows("#decision .error.whole", "Somebody was faster.")
		v.checkRules("saga, refused")
		v.press(kb.Escape)
		v.clicks("#retry")
		v.until("every decision begins anew", `document.querySelector('#decision').open && document.querySelector('#why').value === '' && document.querySelector('#decision .error.whole').textContent === ''`)
		v.types("#why", "again")
		f.says("POST /ops/api/sagas/o-1/retry", "{}")
		f.says("GET /ops/api/sagas/o-1", saga(`"status":"running","step":"send"`, entry("pay", "do", "done", "", "")))
		v.clicks("#decide")
		v.shows("#toast", "It tries again.")
		v.shows("#verbs-note", "It is past its pivot: it goes on until everything is done.")
		f.says("GET /ops/api/sagas/o-1", saga(`"status":"compensating","step":"reserve"`, entry("pay", "do", "failed", "no money", "")))
		v.open("/ops/sagas/o-1")
		v.until("a step that was given up is no failure of now", `document.querySelector('#plan [data-state=given-up] .title').textContent === 'pay' && !document.querySelector('#plan [data-state=failed]')`)
		// What a look was told stays, though the stream comes and goes.
		const comesAndGoes = `performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/ops/api/live')).length >= 2`
		f.says("GET /ops/api/live", ": not for long\n\n")
		f.refuses(404, 0, "there is no saga o-1", "GET /ops/api/sagas/o-1")
		v.open("/ops/sagas/o-1")
		v.until("the stream comes and goes", comesAndGoes)
		v.shows("#connection", "There is no saga o-1.")
		f.refuses(403, 0, "this needs another role", "GET /ops/api/sagas/o-1")
		v.open("/ops/sagas/o-1")
		v.until("the stream comes and goes", comesAndGoes)
		v.sees("This page is for operators")
		v.until("who is none any more sees nothing else", `![...document.querySelectorAll('main *:is(button, input, a, dd)')].some((e) => e.checkVisibility())`)
	})

	t.Run("messages that wait", func(t *testing.T) {
		v := v.in(t)
		f.passes()
		f.says("GET /ops/api/live", event("past", "[]")+event("traffic", traffic(0, true)))
		f.says("GET /ops/api/traffic", `{}`)
		f.says("GET /ops/api/dead-letters", `{"items":[{"service":"payment","error":"does not answer"},{"service":"shipping","items":[
			{"consumer":"shipping.orders","message_id":"m-1","reason":"no such parcel","attempts":1,"at":"2026-01-01T00:00:00Z","message":{"Type":"order.placed.v1","Body":"eyJhIjoxfQ=="}}]}]}`)
		f.says("GET /ops/api/parked", `{"items":[{"service":"payment","error":"does not answer"},{"service":"order","items":[
			{"service":"order","message_id":"m-2","reason":"too large","attempts":3,"since":"2026-01-01T00:00:00Z","blocks":true,"message":{"Type":"order.placed.v1","Body":"AA=="}}],"discarded":[]}]}`)
		events := make([]string, 50)
		for i := range events {
			events[i] = fmt.Sprintf(`{"cursor":%d,"order":"o","version":1,"type":"order.placed","id":"e-%d","at":"2026-01-01T00:00:00Z","data":{}}`, 100-i, 100-i)
		}
		f.set("GET /ops/api/events", frontAnswer{status: http.StatusOK, made: func(q url.Values) string {
			if before := q.Get("before"); before == "51" {
				return `{"items":[{"cursor":50,"order":"o","version":1,"type":"order.placed","id":"e-50","at":"2026-01-01T00:00:00Z","data":{}}]}`
			}
			return `{"items":[` + strings.Join(events, ",") + `]}`
		}})
		v.open("/ops/messages")
		v.shows("#silent", "No answer from payment: what could not be told or understood there is not listed.")
		v.until("what is not known is not called none", `!document.querySelector('#no-dead').checkVisibility() && !document.querySelector('#no-parked').checkVisibility()`)
		v.until("the message can be read", `document.querySelector('#dead pre').textContent.includes('"a": 1')`)
		v.until("it is said what waits behind it", `document.querySelector('#parked [data-is=when]').textContent.endsWith('after 3 attempts; later messages of its key wait for it')`)
		v.until("a queue that is behind catches the eye, and is more than is known", `document.querySelector('#groups tr').dataset.state === 'behind' && document.querySelector('#groups [data-is=behind]').textContent === '20 or more'`)
		v.until("a reader says how far behind it is", `document.querySelector('#readers [data-is=behind]').textContent === '2, 3.0 s'`)
		v.checkState("messages, waiting")
		v.picture("messages")
		f.refuses(409, 0, "failed again", "POST /ops/api/dead-letters/shipping.orders/m-1/replay")
		v.evaluate(`const again = document.querySelector('#dead [data-is=again]'); again.click(); again.click()`)
		v.shows("#dead .reason", "Failed again.")
		if n := len(f.heard("POST /ops/api/dead-letters/shipping.orders/m-1/replay")); n != 1 {
			t.Errorf("replayed %d times, want once", n)
		}
		f.refuses(503, 0, busyText, "POST /ops/api/reporting/rebuild")
		v.clicks("#rebuild")
		v.shows("#toast", "The shop is busy; please try again.")
		v.until("a rebuild can be asked for again", `!document.querySelector('#rebuild').disabled`)
		v.clicks("#more")
		v.until("there are no more events", `document.querySelectorAll('#events li').length === 51 && !document.querySelector('#more').checkVisibility()`)
	})

	t.Run("a trace with a failure", func(t *testing.T) {
		v := v.in(t)
		f.passes()
		f.says("GET /ops/api/live", event("past", "[]"))
		span := func(id, parent, status string) string {
			return fmt.Sprintf(`{"service":"order","instance":"order-1","name":"pay","span_id":%q,"parent_id":%q,"start":%q,"end":%q,"status":%q}`, id, parent, at(0), at(time.Second), status)
		}
		f.set("GET /ops/api/traces", frontAnswer{status: http.StatusOK, made: func(q url.Values) string {
			if q.Get("order") == "none" {
				return `{"items":[]}`
			}
			return `{"items":[{"trace_id":"0123456789abcdef","spans":[` + span("a", "", "ok") + "," + span("b", "a", "error") + `]}]}`
		}})
		v.open("/ops/traces?order=one")
		v.until("who asked whom, and what failed", `document.querySelectorAll('.spans li').length === 2 && document.querySelector('.spans .depth-1') && document.querySelectorAll('.spans [data-status=error]').length === 1`)
		v.checkState("traces, failed")
		v.evaluate(`document.querySelector('#order').value = 'none'; document.querySelector('#find').requestSubmit()`)
		v.sees("No service remembers a trace of that order.")
		v.until("nothing else is there", `document.querySelectorAll('.spans li').length === 0`)
		v.evaluate(`history.back()`)
		v.until("back is back", `document.querySelectorAll('.spans li').length === 2 && document.querySelector('#order').value === 'one'`)
	})
}
