// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/gateway"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// TestPaymentIsKilledFromTheConsole is what somebody does who tries the shop, with the console open beside a customer's
// window: while orders come in, an operator kills the payment service from the chaos panel, and the customer orders. The
// order waits, the breaker opens on the map, payment comes back, everything completes; and at no time is an invariant
// seen broken.
func TestPaymentIsKilledFromTheConsole(t *testing.T) {
	browser := openBrowser(t)
	data := t.TempDir()
	p := startShop(t, data, "127.0.0.1:0", "--packing", "24h")
	_, url, _ := strings.Cut(p.expect("The shop is open"), "The shop is open: ")

	// Whoever opens the console finds it green.
	console := visit(t, browser, url)
	console.mayComplain("status of 503", "status of 429", "net::ERR_")
	console.do("set the size", chromedp.EmulateViewport(1440, 1000))
	console.open("/sign-in?to=/ops")
	console.signsIn("operator@shop.example", "dovetail-operator")
	console.arrives("/ops")
	console.until("every service is on the map and answers", `document.querySelectorAll('#map .node-box[data-state=up]').length === 10`)
	console.until("all invariants hold", `document.querySelector('#verdict').textContent === 'all hold'`)
	console.evaluate(`window.broken = [];
		new MutationObserver(() => document.querySelectorAll('#invariants [data-ok=false]').forEach((i) => window.broken.push(i.innerText))).observe(document.querySelector('#invariants'), { childList: true, subtree: true })`)
	console.picture("before")

	// A customer finds something, and goes as far as the last button.
	customer := visit(t, browser, url)
	customer.mayComplain("status of 503", "status of 429", "net::ERR_")
	customer.open("/")
	customer.types("#q", "dovetail saw")
	customer.sees("10 products for “dovetail saw”")
	customer.clicks(".card h2 a")
	customer.arrives("/products/")
	customer.sees("Hand tools")
	customer.clicks("#add button")
	customer.shows("#basket-count", "1")
	customer.clicks(".top a[href='/basket']")
	customer.arrives("/basket")
	customer.until("the basket is filled", `document.querySelectorAll('.line').length === 1`)
	customer.clicks("a[href='/checkout']")
	customer.arrives("/sign-in")
	customer.signsIn("ada@shop.example", "dovetail-ada")
	customer.arrives("/checkout")
	customer.until("the checkout is ready", `document.querySelector('#credit').textContent !== ''`)

	// The slider is moved with the keyboard.
	console.do("go to the slider", chromedp.Focus(chromedp.CSS("#rate"), chromedp.NodeVisible))
	console.press(kb.ArrowRight, kb.ArrowRight)
	console.shows("#rate-value", "2")
	console.until("orders go through", `Number(document.querySelector('#load-figures [data-is=confirmed]').textContent.replace(/\D/g, '')) >= 3`)
	console.until("the map shows who asks payment", `document.querySelector('[data-call="order>payment"]')`)
	console.until("the charts are drawn, and that of requests has risen", chartsDrawn)

	console.breaks("kill", "payment", 300) // the test ends it
	customer.clicks("#place")
	customer.arrives("/orders/")
	customer.until("the order waits for payment", `document.querySelector('#status').textContent === 'pending' && ['working', 'again'].includes(document.querySelector('#steps li:nth-child(3)').dataset.state)`)
	console.until("the map shows payment down", `document.querySelector('[data-service=payment]').dataset.state === 'down'`)
	console.until("the breaker to payment opens on the map", `document.querySelector('[data-call="order>payment"]').dataset.state !== 'closed'`)
	console.picture("payment-is-killed")
	console.checkMap("payment is killed")
	customer.picture("the-order-waits")
	if !customer.evaluate(`return document.querySelector('#status').textContent === 'pending'`) {
		t.Errorf("the order is %s while there is no payment service, want it pending", customer.text("#status"))
	}

	// Payment comes back.
	console.clicks("#faults button")
	console.until("nothing is in force", `!document.querySelector('#no-faults').hidden`)
	customer.shows("#status", "confirmed")
	customer.shows("#payment", "captured")
	customer.picture("the-order-is-confirmed")
	console.until("every breaker is closed again", `[...document.querySelectorAll('#map .breaker')].every((b) => b.dataset.state === 'closed')`)
	console.until("every service answers", `document.querySelectorAll('#map .node-box[data-state=up]').length === 10`)

	// Nothing is left behind.
	console.do("go to the slider", chromedp.Focus(chromedp.CSS("#rate"), chromedp.NodeVisible))
	console.press(kb.Home)
	console.shows("#rate-value", "0")
	console.until("every order of the load has ended", `document.querySelector('#load-figures [data-is=in_flight]').textContent === '0'`)
	console.until("nothing is under way and all invariants hold", `document.querySelector('#resting').textContent === 'Nothing is under way.' && document.querySelector('#verdict').textContent === 'all hold'`)
	console.picture("after")
	if broken, err := chromedp.Run(console.ctx, chromedp.Evaluate[[]string](`window.broken`)); err != nil || len(broken) > 0 {
		t.Errorf("invariants seen broken: %q, %v; want none", broken, err)
	}
	order, err := chromedp.Run(customer.ctx, chromedp.Evaluate[string](`location.pathname.split('/').pop()`))
	if err != nil {
		t.Fatal(err)
	}
	verifyWithin(t, check.Files(data), []string{order}, atLast)
}

// TestQueuesAndReadersOnTheConsole has a consumer that is gone and a rebuild of the figures, as an operator sees them,
// and pages that are open while something happens.
func TestQueuesAndReadersOnTheConsole(t *testing.T) {
	browser := openBrowser(t)
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: 24 * time.Hour}).stocked()
	v := visit(t, browser, shop.url)
	v.open("/sign-in?to=/ops/messages")
	v.signsIn("operator@shop.example", "dovetail-operator")
	v.arrives("/ops/messages")
	mails := func(is string) string {
		return `(() => {
			const row = [...document.querySelectorAll('#groups tr')].find((r) => r.querySelector('[data-is=group]').textContent === 'notification.orders');
			const [behind, oldest, consumers] = ['behind', 'oldest', 'consumers'].map((name) => row?.querySelector('[data-is=' + name + ']').textContent);
			return ` + is + `;
		})()`
	}
	v.until("nothing waits for mails", mails(`behind === '0' && oldest === '–' && consumers === '1'`))

	operator := shop.as("operator@shop.example", "dovetail-operator")
	end := operator.harm("kill", "notification", 0)
	customer := shop.newcomer()
	for range 2 {
		customer.ends(customer.place("", lineItem{"product_id": "p-018", "quantity": 1}), "confirmed")
	}
	v.until("the mails wait, for how long, and that nobody hears", mails(`Number(behind) >= 2 && oldest !== '–' && consumers === '0' && row.dataset.state === 'nobody'`))
	v.picture("behind")
	end()
	v.until("the mails are written", mails(`behind === '0' && oldest === '–' && consumers === '1'`))

	reader := func(name, status string) string {
		return `[...document.querySelectorAll('#readers tr')].some((r) => r.querySelector('[data-is=reader]').textContent === ` + quote(name) +
			` && r.querySelector('[data-is=status]').textContent === ` + quote(status) + `)`
	}
	v.until("the listing is up to date", reader("listing, revision 2", "serving")+` && document.querySelector('#readers [data-is=behind]').textContent === 'nothing'`)
	v.until("the first build serves", reader("figures, build 1", "serving"))
	v.clicks("#rebuild")
	v.until("the second build serves", reader("figures, build 2", "serving")+" && "+reader("figures, build 1", "retired"))
	v.until("it has counted the same", `(() => {
		const counts = [...document.querySelectorAll('#readers tr')].filter((r) => r.textContent.includes('figures')).map((r) => r.querySelector('[data-is=applied]').textContent);
		return counts.length === 2 && counts[0] !== '–' && counts[0] === counts[1];
	})()`)
	v.until("there can be another", `!document.querySelector('#rebuild').disabled`)
	v.picture("rebuilt")

	// What one service knows can be seen while another one is down.
	v.mayComplain("status of 503")
	back := operator.harm("kill", "reporting", 0)
	v.until("the figures are where they were", reader("figures, build 2", "no answer"))
	back()
	v.until("the figures are read again", reader("figures, build 2", "serving"))
	back = operator.harm("kill", "order", 0)
	v.open("/ops/messages")
	v.until("what can be had is shown, and that something cannot", `document.querySelector('#groups').checkVisibility() && document.querySelectorAll('#groups tr').length > 0 && document.querySelector('#connection').checkVisibility()`)
	v.picture("order-is-killed")
	back()
	v.until("the rest comes by itself", `document.querySelectorAll('#events li').length > 0 && !document.querySelector('#connection').checkVisibility()`)

	// Pages that are open are told of what changes.
	v.open("/ops/sagas")
	v.until("the sagas are listed", `document.querySelectorAll('#sagas tr').length > 0`)
	order := customer.place("pm_slow", lineItem{"product_id": "p-018", "quantity": 1})
	v.until("the new saga is listed", `document.querySelector('#sagas').textContent.includes(`+quote(order)+`)`)
	v.open("/ops/traces?order=" + order)
	v.until("the trace goes on while the order does", `document.querySelector('#traces').textContent.includes('place-order/settle-credit')`)
	v.open("/ops/sagas/" + order)
	v.shows("#status", "completed")
	v.open("/ops/messages?order=" + order)
	v.until("its events are listed", `document.querySelectorAll('#events li').length >= 2`)
	other := customer.place("", lineItem{"product_id": "p-018", "quantity": 1})
	v.evaluate(`const order = document.querySelector('#order'); order.value = ''; order.dispatchEvent(new Event('input'))`)
	v.until("the events of the next are told", `document.querySelector('#events').textContent.includes(`+quote(other)+`)`)

	// Of the build that is over the log keeps nothing.
	journal, err := check.Files(data)("journal")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = journal.Close() }()
	eventually(t, func() error {
		var readers, serving int
		err := journal.QueryRowContext(t.Context(), `SELECT COUNT(*), COUNT(CASE WHEN name = 'reporting.2' THEN 1 END) FROM readers`).Scan(&readers, &serving)
		if err != nil || readers != 1 || serving != 1 {
			return fmt.Errorf("%d readers of the log (%v), want the second build alone", readers, err)
		}
		return nil
	})
}

// TestConsoleWithTheKeyboard does a fault and decides about a saga without a mouse.
func TestConsoleWithTheKeyboard(t *testing.T) {
	browser := openBrowser(t)
	shop := openShop(t).stocked()
	v := visit(t, browser, shop.url)
	v.open("/sign-in?to=/ops")
	v.signsIn("operator@shop.example", "dovetail-operator")
	v.arrives("/ops")
	v.until("the faults are known", `document.querySelector('#kind').options.length > 0`)
	v.tabsTo("#kind")
	for i := 0; !v.evaluate(`return document.querySelector('#kind').value === 'kill'`); i++ {
		if i == 20 {
			v.fail("the arrows do not choose a fault")
		}
		v.press(kb.ArrowDown)
	}
	v.tabsTo("#service")
	v.until("payment is proposed", `document.activeElement.value === 'payment'`)
	v.tabsTo("#seconds")
	v.press(kb.End, kb.Backspace, kb.Backspace, kb.Backspace, kb.Backspace, "300")
	v.tabsTo("#begin")
	v.press(" ")
	v.until("payment is killed", `document.querySelector('#faults').textContent.includes('payment')`)
	v.picture("killed")

	order := shop.newcomer().place("", lineItem{"product_id": "p-019", "quantity": 1})
	v.open("/ops/sagas/" + order)
	v.until("the saga can be compensated", `document.querySelector('#known:not([hidden]) #cancel:not(:disabled)')`)
	v.tabsTo("#cancel")
	v.press(kb.Enter)
	v.until("the reason is asked for", `document.querySelector('#decision').open && document.activeElement.id === 'why'`)
	v.checkRules("decision")
	v.tabsTo("#leave")
	v.press(kb.Enter)
	v.until("it is left", `!document.querySelector('#decision').open && document.activeElement.id === 'cancel'`)
	v.press(kb.Enter)
	v.until("the reason is asked for again", `document.querySelector('#decision').open && document.activeElement.id === 'why'`)
	v.press("The customer has called")
	v.tabsTo("#decide")
	v.press(kb.Enter)
	v.until("the decision is in the history", `document.querySelector('#history').textContent.includes('The customer has called')`)
	v.picture("compensating")

	v.open("/ops")
	v.until("payment can be had back", `document.querySelector('#faults button')`)
	v.tabsTo("#faults button")
	v.press(kb.Enter)
	v.until("nothing is in force", `!document.querySelector('#no-faults').hidden`)
}

// TestConsoleOfAShopThatNobodyControls is the console as it is in containers: the gateway has nobody to ask for faults,
// load and invariants, and says so in their place.
func TestConsoleOfAShopThatNobodyControls(t *testing.T) {
	browser := openBrowser(t)
	shop := openShop(t)
	auth, err := platform.NewAuth(shop.url, shop.url+"/.well-known/jwks.json", strings.Repeat("x", 32), http.DefaultClient)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := gateway.New(platform.Env{Name: "gateway", Auth: auth, Log: slog.New(slog.DiscardHandler), Caller: &platform.Caller{Client: &http.Client{Transport: http.DefaultTransport}}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	behind, err := url.Parse(shop.url)
	if err != nil {
		t.Fatal(err)
	}
	front := http.NewServeMux()
	front.Handle("/", httputil.NewSingleHostReverseProxy(behind))
	for _, path := range []string{"chaos", "load", "invariants"} {
		front.Handle("/ops/api/"+path, alone.Handler())
	}
	server := httptest.NewServer(front)
	t.Cleanup(func() {
		server.CloseClientConnections() // of the stream
		server.Close()
	})

	v := visit(t, browser, server.URL)
	v.mayComplain("status of 404")
	v.open("/sign-in?to=/ops")
	v.signsIn("operator@shop.example", "dovetail-operator")
	v.arrives("/ops")
	v.until("it is said why", `document.querySelector('#no-desk').checkVisibility() && document.querySelector('#no-desk-why').textContent.includes('nobody here controls all of it')`)
	v.until("what cannot be is not there", `document.querySelectorAll('.desk').length === 3 && [...document.querySelectorAll('.desk')].every((e) => !e.checkVisibility())`)
	v.until("the rest is", `document.querySelectorAll('#map .node-box[data-state=up]').length === 10`)
	v.checkRules("ops without control")
	v.picture("nobody-controls")
}

// checkMap holds the map to being legible, wide and on a phone: no text sticks out of its box, and none covers another.
func (v *visitor) checkMap(when string) {
	v.t.Helper()
	for _, width := range []int64{360, 1440} {
		v.do("set the size", chromedp.EmulateViewport(width, 1000))
		v.until("the map is laid out", `document.querySelectorAll('#map svg.'+(innerWidth < 600 ? 'narrow' : 'wide')+' .node-box').length === 10`)
		wrong, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]string](`(() => {
			const box = (e) => { const { left, right, top, bottom } = e.getBoundingClientRect(); return { left, right, top, bottom, says: e.textContent || e.getAttribute('class') || e.parentNode.getAttribute('class') }; };
			const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
			const wrong = [];
			for (const node of document.querySelectorAll('#map .node-box')) {
				const frame = box(node.querySelector('rect'));
				const parts = [...node.querySelectorAll('text, circle')].filter((e) => e.tagName === 'circle' || e.textContent).map(box);
				parts.forEach((p, i) => {
					if (p.left < frame.left || p.right > frame.right || p.bottom > frame.bottom) wrong.push(p.says + ' sticks out of ' + node.dataset.service);
					for (const other of parts.slice(i + 1)) if (meet(p, other)) wrong.push(p.says + ' covers ' + other.says + ' of ' + node.dataset.service);
				});
			}
			const said = [...document.querySelectorAll('#map text.edge:is([data-state=open], [data-state=half-open])')].map(box);
			said.forEach((a, i) => said.slice(i + 1).forEach((b) => { if (meet(a, b)) wrong.push(a.says + ' covers ' + b.says); }));
			return wrong;
		})()`))
		if err != nil {
			v.fail("%s: map: %v", when, err)
		}
		for _, w := range wrong {
			v.t.Errorf("the map, %d wide, while %s: %s", width, when, w)
		}
		v.picture(fmt.Sprintf("map-%d", width))
	}
}

// chartsDrawn is true when every chart has a line in the colours of its legend that goes through 20 columns of pixels at
// least, and that of the requests reaches the upper half.
const chartsDrawn = `(() => {
	const rgb = (colour) => {
		const pen = new OffscreenCanvas(1, 1).getContext('2d');
		pen.fillStyle = colour;
		pen.fillRect(0, 0, 1, 1);
		return pen.getImageData(0, 0, 1, 1).data;
	};
	const lines = [...document.querySelectorAll('#charts .chart')].map((chart) => {
		const canvas = chart.querySelector('canvas'), { width, height } = canvas;
		const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
		const colours = [...chart.querySelectorAll('.value i')].map((i) => rgb(getComputedStyle(i).backgroundColor));
		const columns = new Set();
		let top = height;
		for (let at = 0; at < pixels.length; at += 4) {
			if (pixels[at + 3] < 200 || !colours.some((c) => [0, 1, 2].every((n) => Math.abs(c[n] - pixels[at + n]) < 24))) continue;
			columns.add(at / 4 % width);
			top = Math.min(top, Math.floor(at / 4 / width));
		}
		return { columns: columns.size, risen: top < height / 2 };
	});
	return lines.length === 6 && lines.every((l) => l.columns >= 20) && lines[0].risen;
})()`

// breaks brings a fault about with the chaos panel.
func (v *visitor) breaks(kind, service string, seconds int) {
	v.t.Helper()
	v.until("the faults are known, and none is on its way", `document.querySelector('#kind').options.length > 0 && !document.querySelector('#begin').ariaDisabled`)
	v.do("choose what happens", chromedp.SetValue(chromedp.CSS("#kind"), kind, chromedp.NodeVisible))
	v.evaluate(`document.querySelector('#kind').dispatchEvent(new Event('change'))`)
	v.do("choose to whom", chromedp.SetValue(chromedp.CSS("#service"), service, chromedp.NodeVisible))
	v.do("choose how long", chromedp.SetValue(chromedp.CSS("#seconds"), strconv.Itoa(seconds), chromedp.NodeVisible))
	v.clicks("#begin")
	v.until("the fault is in force", `document.querySelector('#faults').textContent.includes(`+quote(service)+`)`)
}

// checkOutline holds a page to what a screen reader makes of it: its landmarks and its headings, in its
// accessibility tree.
func (v *visitor) checkOutline(page string) {
	v.t.Helper()
	tree, err := chromedp.Call(v.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		v.fail("%s: accessibility tree: %v", page, err)
	}
	landmarks := map[string]int{}
	var outline []string
	last := 0
	for _, n := range tree.Nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		var role, name string
		_ = json.Unmarshal(n.Role.Value, &role)
		if n.Name != nil {
			_ = json.Unmarshal(n.Name.Value, &name)
		}
		switch role {
		case "banner", "main", "contentinfo":
			landmarks[role]++
		case "navigation", "region":
			landmarks[role]++
			if name == "" {
				v.t.Errorf("%s: a %s has no name", page, role)
			}
		case "heading":
			level := 0
			for _, p := range n.Properties {
				if p.Name == "level" && p.Value != nil {
					_ = json.Unmarshal(p.Value.Value, &level)
				}
			}
			if level > last+1 || name == "" {
				v.t.Errorf("%s: heading %q has level %d behind one of level %d", page, name, level, last)
			}
			last = level
			outline = append(outline, strings.Repeat("  ", level-1)+name)
		}
	}
	for _, role := range []string{"banner", "main", "contentinfo"} {
		if landmarks[role] != 1 {
			v.t.Errorf("%s: has %d landmarks %s, want 1", page, landmarks[role], role)
		}
	}
	if landmarks["navigation"] == 0 || len(outline) == 0 {
		v.t.Errorf("%s: has no navigation or no heading: %v, %v", page, landmarks, outline)
	}
	v.t.Logf("%s: outline %q", page, outline)
}

// checkRules holds a page to the rules of axe-core, where that is installed.
func (v *visitor) checkRules(page string) {
	v.t.Helper()
	script, err := os.ReadFile(axePath())
	if err != nil {
		const how = "%s: not held to axe-core's rules: %v; scripts/install-axe installs it"
		if testserver.Required() {
			v.t.Errorf(how, page, err)
			return
		}
		v.t.Logf(how, page, err)
		return
	}
	type violation struct{ ID, Impact, Help, Nodes string }
	v.evaluate(string(script))
	found, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]violation](`axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) =>
		violations.map((x) => ({ ID: x.id, Impact: x.impact, Help: x.help, Nodes: x.nodes.slice(0, 5).map((n) => n.html + ' ' + n.failureSummary).join('\n') })))`, chromedp.EvalAwaitPromise))
	if err != nil {
		v.fail("%s: axe-core: %v", page, err)
	}
	for _, x := range found {
		if x.Impact == "serious" || x.Impact == "critical" {
			v.t.Errorf("%s: %s: %s: %s\n%s", page, x.Impact, x.ID, x.Help, x.Nodes)
			continue
		}
		v.t.Logf("%s: %s: %s: %s", page, x.Impact, x.ID, x.Help)
	}
}

// axePath is where scripts/install-axe puts axe-core.
func axePath() string {
	if path := os.Getenv("DOVETAIL_AXE"); path != "" {
		return path
	}
	return filepath.Join("..", "..", ".services", "axe", "package", "axe.min.js")
}

// checkWeight holds a page to what makes it fast on any machine: what it loads is little and comes from the shop itself, and
// nothing but its styles is waited for before something is shown.
func (v *visitor) checkWeight(page string, budget float64) {
	v.t.Helper()
	weight, err := chromedp.Run(v.ctx, chromedp.Evaluate[struct {
		Files, Bytes, Calls float64
		Foreign, Blocking   []string
	}](`(() => {
		const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')];
		const files = all.filter((e) => e.entryType === 'navigation' || new URL(e.name).pathname.startsWith('/assets/'));
		return {
			Files: files.length, Bytes: files.reduce((sum, e) => sum + e.decodedBodySize, 0), Calls: all.length - files.length,
			Foreign: all.map((e) => e.name).filter((name) => !name.startsWith(location.origin + '/')),
			Blocking: all.filter((e) => e.renderBlockingStatus === 'blocking' && !e.name.endsWith('.css')).map((e) => e.name),
		};
	})()`))
	if err != nil {
		v.fail("%s: weight: %v", page, err)
	}
	const most = 32
	if weight.Files == 0 || weight.Files > most || weight.Bytes == 0 || weight.Bytes > budget {
		v.t.Errorf("%s loads %v files with %v bytes, want at most %d with %v", page, weight.Files, weight.Bytes, most, budget)
	}
	for _, name := range weight.Foreign {
		v.t.Errorf("%s asks for %s, which is not the shop's", page, name)
	}
	for _, name := range weight.Blocking {
		v.t.Errorf("%s shows nothing before it has %s", page, name)
	}
	v.t.Logf("%s: %v files, %v bytes, %v calls", page, weight.Files, weight.Bytes, weight.Calls)
}

// tellTimes writes how long a page took to the test's log: on a machine that does a dozen things at once they
// are no verdict.
func (v *visitor) tellTimes(page string) {
	v.t.Helper()
	times, err := chromedp.Run(v.ctx, chromedp.Evaluate[struct{ Paint, Load float64 }](`({
		Paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0,
		Load: performance.getEntriesByType('navigation')[0]?.loadEventEnd ?? 0,
	})`))
	if err != nil {
		v.fail("%s: times: %v", page, err)
	}
	v.t.Logf("%s: first contentful paint after %.0f ms, loaded after %.0f ms", page, times.Paint, times.Load)
}
