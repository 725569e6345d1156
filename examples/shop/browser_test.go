// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// TestPages does in a real browser what a person does. The pictures that it takes on the way are kept in
// the folder SHOP_PICTURES, which make test sets, or with -artifacts where go help testflag says.
func TestPages(t *testing.T) {
	browser := openBrowser(t)
	shop := openShop(t).stocked()

	t.Run("a person finds, orders, and watches it happen", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.open("/")
		v.sees("24 products on page 1")
		v.picture("products")
		v.types("#q", "dovetail saw")
		v.sees("10 products for “dovetail saw”")
		v.clicks(".card h2 a")
		v.sees("Hand tools")
		v.picture("product")
		v.clicks("#add button")
		v.shows("#basket-count", "1")
		v.clicks(".top a[href='/basket']")
		v.shows("#total", v.text(".line > .price"))
		v.picture("basket")
		v.clicks("a[href='/checkout']")
		v.arrives("/sign-in")
		v.signsIn("ada@shop.example", "dovetail-ada")
		v.arrives("/checkout")
		v.sees("Your free credit")
		v.picture("checkout")
		v.clicks("#place")
		v.arrives("/orders/")
		v.shows("#status", "confirmed")
		v.until("every step is done", `document.querySelectorAll('#steps [data-state=done]').length === 7`)
		v.until("the page knows every step", `[...document.querySelectorAll('#moments tr')].filter((m) => m.textContent.includes(' done')).length === 7`)
		v.shows("#payment", "captured")
		v.sees("Your order is confirmed") // the mail about it
		v.shows("#basket-count", "0")
		v.picture("confirmed")
		v.clicks(".top a[href='/orders']")
		v.shows("#orders .badge", "confirmed")
		v.picture("orders")
		v.clicks(".bottom a[href='/mails']")
		v.sees("are packing")
		v.picture("mails")
	})

	t.Run("a declined card shows the reason, and what was given back", func(t *testing.T) {
		v := visit(t, browser, shop.url).member(shop)
		v.orders("p-012", "pm_declined")
		v.shows("#status", "rejected")
		v.shows("#reason", "The card was declined.")
		v.until("credit and stock are given back", `document.querySelectorAll('#steps [data-state=undone]').length === 2`)
		v.until("nothing was held that could be let go", `!document.querySelector('#steps li:nth-child(3)').textContent.includes('let go')`)
		v.shows("#payment", "declined")
		v.shows("#shipment", "nothing to send")
		v.until("it cannot be cancelled any more", `document.querySelector('#cancel').disabled`)
		v.picture("declined")
	})

	t.Run("an order is cancelled after a question", func(t *testing.T) {
		v := visit(t, browser, shop.url).member(shop)
		v.orders("p-013", "pm_flaky")
		v.shows("#status", "confirmed")
		v.clicks("#cancel")
		v.picture("question")
		v.clicks("#sure [value=keep]")
		v.clicks("#cancel")
		v.clicks("#sure [value=cancel]")
		v.shows("#status", "cancelled")
		v.until("all of it is taken back", `document.querySelectorAll('#cancel-steps [data-state=done]').length === 5`)
		v.shows("#payment", "refunded")
		v.picture("cancelled")
	})

	t.Run("an order is cancelled before it is paid", func(t *testing.T) {
		v := visit(t, browser, shop.url).member(shop)
		v.orders("p-017", "pm_slow")
		v.until("payment is at work", `document.querySelector('#steps li:nth-child(3)').dataset.state === 'working'`)
		v.clicks("#cancel")
		v.clicks("#sure [value=cancel]")
		v.shows("#status", "cancelled")
		v.shows("#reason", "Cancelled by the customer.")
		// On a machine that is busy the order may have been paid before the click: then it is taken back.
		v.until("everything is given back", `document.querySelectorAll('#steps [data-state=undone]').length >= 2 || document.querySelectorAll('#cancel-steps [data-state=done]').length === 5`)
		v.picture("cancelled-early")
	})

	t.Run("everything can be done with the keyboard alone", func(t *testing.T) {
		email, password := newAccount(shop)
		v := visit(t, browser, shop.url)
		v.open("/")
		v.sees("24 products")
		v.press(kb.Tab)
		v.until("the first stop skips the navigation", `document.activeElement.matches('.skip')`)
		v.tabsTo("#q")
		v.press("block plane, fine", kb.Enter)
		v.sees("1 product for “block plane, fine”")
		v.tabsTo(".card button")
		v.picture("keyboard-focus")
		v.press(kb.Enter)
		v.shows("#basket-count", "1")
		v.tabsTo(".top a[href='/basket']")
		v.press(kb.Enter)
		v.arrives("/basket")
		v.tabsTo("a[href='/checkout']")
		v.press(kb.Enter)
		v.arrives("/sign-in")
		v.tabsTo("#email")
		v.press(email)
		v.tabsTo("#password")
		v.press(password, kb.Enter)
		v.arrives("/checkout")
		v.sees("Your free credit")
		v.tabsTo("[name=payment_method]")
		v.press(kb.ArrowDown, kb.ArrowDown)
		v.until("the arrows choose", `document.querySelector('[value=pm_insufficient_funds]').checked`)
		v.tabsTo("#place")
		v.picture("keyboard-checkout")
		v.press(" ")
		v.arrives("/orders/")
		v.shows("#reason", "There is not enough money in the account.")
	})

	t.Run("a double click makes one order", func(t *testing.T) {
		v := visit(t, browser, shop.url).member(shop)
		v.fills("p-014")
		v.open("/checkout")
		v.sees("Your free credit")
		v.do("press twice", chromedp.DoubleClick(chromedp.CSS("#place")))
		v.arrives("/orders/")
		v.shows("#status", "confirmed")
		v.open("/orders")
		v.until("there is one order", `document.querySelectorAll('#orders li').length === 1`)
	})

	t.Run("a reload before the answer came makes one order", func(t *testing.T) {
		v := visit(t, browser, shop.url).member(shop)
		v.fills("p-015")
		v.open("/checkout")
		v.sees("Your free credit")
		held := v.hold("*/api/orders")
		v.clicks("#place")
		<-held // the shop has taken the order, but the page does not hear of it
		v.do("reload", chromedp.Reload())
		v.release()
		v.arrives("/orders/")
		v.shows("#status", "confirmed")
		v.shows("#basket-count", "0")
		v.open("/orders")
		v.until("there is one order", `document.querySelectorAll('#orders li').length === 1`)
	})

	t.Run("what is wrong is said at the field", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.mayComplain("status of 422", "status of 409", "status of 401")
		v.open("/sign-up")
		v.types("#name", "Ada the second")
		v.types("#email", "ada@shop.example")
		v.types("#password", "short")
		v.clicks("[type=submit]")
		v.shows("#password-error", "Has 5 bytes, want 8 to 72.")
		v.until("the field has the focus", `document.activeElement.id === 'password' && document.activeElement.ariaInvalid === 'true'`)
		v.picture("field")
		v.types("#password", "-but-longer")
		v.clicks("[type=submit]")
		v.shows("#email-error", "Has an account already; sign in instead.")
		v.shows("#password-error", "")
		v.open("/sign-in")
		v.signsIn("ada@shop.example", "wrong")
		v.shows(".error.whole", "The address or the password is wrong.")
	})

	t.Run("a product that is gone is said at its line", func(t *testing.T) {
		v := visit(t, browser, shop.url).member(shop)
		v.mayComplain("status of 422")
		v.fills("p-001", "p-999")
		v.open("/checkout")
		v.sees("Your free credit")
		v.clicks("#place")
		v.shows("#lines li:nth-child(2) .error", `Is "p-999", which is not in the catalogue.`)
	})

	t.Run("a token that has ended leads to sign-in and back", func(t *testing.T) {
		v := visit(t, browser, shop.url).member(shop)
		v.mayComplain("status of 401")
		v.evaluate(`const s = JSON.parse(sessionStorage.session); s.token += 'x'; sessionStorage.session = JSON.stringify(s)`)
		v.open("/orders")
		v.arrives("/sign-in")
		v.signsIn("ada@shop.example", "dovetail-ada")
		v.arrives("/orders")
	})

	t.Run("sign-in leads nowhere else", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.mayComplain("status of 404")
		for _, to := range []string{"//elsewhere.example/", "https://x.example//elsewhere.example/", "/.//elsewhere.example/"} {
			v.open("/sign-in?to=" + url.QueryEscape(to))
			v.signsIn("ada@shop.example", "dovetail-ada")
			v.until("it leads into the shop from "+to, fmt.Sprintf(`location.origin === %q && location.pathname !== '/sign-in' && document.readyState === 'complete'`, shop.url))
		}
	})

	t.Run("an operator looks behind the counter", func(t *testing.T) {
		shop.newcomer().place("", lineItem{"product_id": "p-016", "quantity": 1})
		v := visit(t, browser, shop.url)
		v.open("/sign-in?to=/ops")
		v.signsIn("operator@shop.example", "dovetail-operator")
		v.arrives("/ops")
		v.until("every service is ready", fmt.Sprintf(`[...document.querySelectorAll('#services .badge')].length === %d && [...document.querySelectorAll('#services .badge')].every((b) => b.textContent === 'ready')`, len(assembly.Backends)+1))
		v.until("the map has every service", fmt.Sprintf(`document.querySelectorAll('#map .node-box[data-state=up]').length === %d`, len(assembly.Backends)+1))
		v.shows("#verdict", "all hold")
		v.picture("operations")
		v.clicks(".tabs a[href='/ops/sagas']")
		v.arrives("/ops/sagas")
		v.sees("place-order")
		v.picture("sagas")
		v.clicks("#sagas a")
		v.arrives("/ops/sagas/")
		v.until("the plan is drawn", `document.querySelectorAll('#plan .title').length > 7 && document.querySelectorAll('#history li').length > 0`)
		v.picture("saga")
		v.clicks("#to-events")
		v.arrives("/ops/messages")
		v.sees("order.placed.v1")
		v.picture("messages")
		v.clicks("#events summary")
		v.clicks("#events a")
		v.arrives("/ops/traces")
		v.sees("spans over")
		v.picture("trace")
		for _, page := range []string{"/orders", "/mails", "/checkout"} {
			v.open(page)
			v.sees("This page is for customers")
			v.until("there is nothing else", `[...document.querySelectorAll('main > :not(h1)')].filter((e) => e.checkVisibility()).length === 1`)
		}
	})

	t.Run("a list keeps the focus on what it was on", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.open("/sign-in")
		got, err := chromedp.Run(v.ctx, chromedp.Evaluate[string](`import('/assets/js/dom.js').then(({ fill }) => {
			const list = document.createElement('ul');
			const section = document.createElement('section');
			section.append(document.createElement('h2'), list);
			document.querySelector('main').append(section);
			const show = (...items) => {
				fill(list, items, ({ id, text }) => {
					const row = document.createElement('li');
					row.innerHTML = '<details data-key="' + id + '"><summary>' + id + text + '</summary></details><button>' + id + '</button>';
					return row;
				}, (item) => item.id);
				return document.activeElement.textContent + [...list.querySelectorAll('details')].map((d) => (d.open ? 'o' : 'c')).join('') + list.textContent;
			};
			const item = (id, text = '') => ({ id, text });
			show(item('a'), item('b'), item('c'));
			const b = list.children[1];
			b.querySelector('details').open = true;
			b.querySelector('button').focus();
			return [
				show(item('n'), item('a'), item('b'), item('c')), b.isConnected,
				show(item('b'), item('n'), item('c')), b.isConnected,
				show(item('b', '!'), item('n')), b.isConnected,
				show(item('n')), document.activeElement.tagName,
				show(),
			].join(' ');
		})`, chromedp.EvalAwaitPromise))
		if want := "bccocnnaabbcc true boccbbnncc true bocb!bnn false cnn H2 "; err != nil || got != want {
			t.Errorf("focus, unfolded and rows = %q, %v; want %q", got, err, want)
		}
	})

	t.Run("a stream is read the same however it is cut", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.open("/sign-in")
		// The rules are those of https://html.spec.whatwg.org/#event-stream-interpretation.
		const sent = ": hello\n\ndata: plain\n\nevent: named\r\ndata:two\r\ndata:  lines\r\n\r\nid: 7\rretry: 9\rdata\rdata: é€😀\r\revent: no data\n\ndata: no end\n"
		const want = `[null,{"name":"message","data":"plain"},{"name":"named","data":"two\n lines"},{"name":"message","data":"\né€😀"}]`
		got, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]string](`(async () => {
			const { events } = await import('/assets/js/stream.js');
			const bytes = new TextEncoder().encode(`+quote(sent)+`);
			const results = new Set();
			for (let size = 1; size <= bytes.length; size++) {
				const stream = new ReadableStream({
					start(to) {
						for (let at = 0; at < bytes.length; at += size) to.enqueue(bytes.slice(at, at + size));
						to.close();
					},
				});
				results.add(JSON.stringify(await Array.fromAsync(events(stream))));
			}
			return [...results];
		})()`, chromedp.EvalAwaitPromise))
		if err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("events = %q, %v; want only %s", got, err, want)
		}
	})

	t.Run("amounts have as many decimals as their currency", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.open("/sign-in")
		got, err := chromedp.Run(v.ctx, chromedp.Evaluate[string](`import('/assets/js/format.js').then(({ money }) =>
			[['EUR', 1999], ['EUR', 5], ['JPY', 500], ['KWD', 1234]].map(([c, n]) => money(n, c).replace(/[^0-9.]/g, '')).join(' '))`, chromedp.EvalAwaitPromise))
		if want := "19.99 0.05 500 1.234"; err != nil || got != want {
			t.Errorf("money = %q, %v; want %q", got, err, want)
		}
	})

	t.Run("a basket is kept in order", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.mayComplain("status of 404")
		v.open("/sign-in?to=/basket")
		v.until("sign-up leads there too", `document.querySelector('#other').search === '?to=/basket'`)
		v.evaluate(`localStorage.basket = '[{"id":7},null,{"id":"p-001","quantity":0}]'`)
		v.open("/basket")
		v.sees("There is nothing in it yet")

		v.fills("p-001", "p-002", "p-999")
		v.evaluate(`const all = JSON.parse(localStorage.basket); window.price = all[0].price; all[0].price = 1000; localStorage.basket = JSON.stringify(all)`)
		v.open("/basket")
		v.shows(".line:nth-child(1) .error", "The price was €10.00 when you put it in.")
		v.shows(".line:nth-child(3) .error", "This is no longer sold; please remove it.")
		v.checkRules("basket, changed")
		const first = `document.querySelector('.line input')`
		v.evaluate(first + `.focus(); ` + first + `.value = '0'; ` + first + `.dispatchEvent(new Event('input'))`)
		v.shows(".line:nth-child(1) .error", "A whole number from 1 to 100, please.")
		v.until("it is called invalid", first+`.ariaInvalid === 'true'`)
		v.evaluate(first + `.blur()`)
		v.until("what was not sound is forgotten", first+`.value === '1' && !`+first+`.ariaInvalid`)
		v.evaluate(`window.before = document.querySelector('#total').textContent`)
		v.evaluate(first + `.value = '3'; ` + first + `.dispatchEvent(new Event('input'))`)
		v.shows("#basket-count", "5")
		v.until("the total is that of all pieces", `(() => {
			const cents = (e) => Number(e.textContent.replace(/\D/g, ''));
			return cents(document.querySelector('#total')) === [...document.querySelectorAll('.line > .price')].reduce((sum, e) => sum + cents(e), 0) && document.querySelector('#total').textContent !== window.before;
		})()`)
		v.clicks(".line:nth-child(2) button")
		v.until("the next button has the focus", `document.querySelectorAll('.line').length === 2 && document.activeElement === document.querySelector('.line:nth-child(2) button')`)
		v.until("it is said, for eyes and ears", `document.querySelector('#toast').textContent.endsWith('is out of your basket.') && document.querySelector('#toast').matches('.shown')`)
		v.evaluate(`localStorage.basket = '[]'; dispatchEvent(new StorageEvent('storage', { key: 'basket' }))`) // by another tab
		v.shows("#basket-count", "0")
		v.sees("There is nothing in it yet")

		v.open("/products/p-003")
		v.sees("Hand tools")
		v.clicks("#add button")
		v.shows("#basket-count", "1")
		v.clicks("#add button")
		v.shows("#basket-count", "2")
		v.evaluate(`document.querySelector('#quantity').value = '0'`)
		v.clicks("#add button")
		v.shows("#quantity-error", "Please enter a whole number from 1 to 100.")
		v.evaluate(`document.querySelector('#quantity').value = '99'`)
		v.clicks("#add button")
		v.shows("#quantity-error", "One order takes at most 100 pieces of an article.")
		v.evaluate(`localStorage.basket = JSON.stringify(Array.from({ length: 50 }, (_, i) => ({ id: 'x-' + i, name: 'x', price: 1, currency: 'EUR', quantity: 1 })))`)
		v.clicks("#add button")
		v.shows("#quantity-error", "One order takes at most 50 articles.")
	})

	t.Run("the shelves go back and forth", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.open("/?q=saw&category=Measuring")
		v.until("the category is marked", `document.querySelector('#categories [aria-current]')?.textContent === 'Measuring'`)
		v.evaluate(`const q = document.querySelector('#q'), find = document.querySelector('#find'); q.value = 'a'; find.requestSubmit(); q.value = 'steel rule'; find.requestSubmit()`)
		v.until("the last question is answered", `document.querySelector('#summary').textContent.endsWith('for “steel rule” in Measuring')`)
		v.clicks("#categories a[data-category='Hand tools']")
		v.until("the other is marked", `document.querySelector('#categories [aria-current]').textContent === 'Hand tools' && document.querySelector('#summary').textContent.endsWith('in Hand tools.')`)
		v.evaluate(`history.back()`)
		v.until("back is back", `document.querySelector('#categories [aria-current]').textContent === 'Measuring' && document.querySelector('#q').value === 'steel rule' && document.querySelector('#summary').textContent.endsWith('in Measuring')`)

		v.open("/")
		v.until("products have pictures of their own", `new Set([...document.querySelectorAll('.card use')].map((u) => u.getAttribute('href'))).size > 3`)
		v.until("it is shown where one is", `document.querySelector('.top nav [aria-current=page]').textContent === 'Products'`)
		v.clicks("#next")
		v.sees("products on page 2")
		v.until("who turned the page is at its top", `document.activeElement.id === 'summary' && document.querySelector('#page-number').textContent === 'Page 2'`)
		if !v.evaluate(`let kept; document.addEventListener('click', (e) => { kept = !e.defaultPrevented; e.preventDefault(); }, { once: true });
			document.querySelector('#next').dispatchEvent(new MouseEvent('click', { ctrlKey: true, bubbles: true, cancelable: true }));
			return kept`) {
			t.Error("a click that opens a new tab is taken from the browser")
		}
		v.clicks(".card button")
		v.until("it is said, for eyes and ears", `document.querySelector('#toast').textContent.endsWith('is in your basket.') && document.querySelector('#toast').matches('.shown')`)
	})

	t.Run("a checkout says what will become of it", func(t *testing.T) {
		v := visit(t, browser, shop.url).member(shop)
		v.open("/checkout")
		v.sees("There is nothing to order.")
		v.fills("p-001")
		v.evaluate(`const all = JSON.parse(localStorage.basket); all[0].quantity = 90; localStorage.basket = JSON.stringify(all)`)
		v.open("/checkout")
		v.sees("This order is above it, so it will be rejected.")
		v.fills("p-001", "p-002")
		v.open("/checkout")
		v.sees("Your free credit")
		v.evaluate(`sessionStorage.pages = history.length`)
		v.clicks("#place")
		v.arrives("/orders/")
		v.until("there is no way back to what is done", `String(history.length) === sessionStorage.pages`)
		v.open("/orders")
		v.until("there is more in it", `document.querySelector('#orders a').textContent.endsWith(' and 1 more')`)
	})

	t.Run("a page that does not exist says so", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.mayComplain("status of 404")
		v.open("/nowhere")
		v.sees("There is no such page")
		v.open("/products/p-999")
		v.sees("There is no such product")
		v.open("/?page=99")
		v.sees("There is no page 99.")
		v.clicks("#previous")
		v.sees("24 products on page 1")
		v.open("/?page=abc")
		v.sees("24 products on page 1")
	})

	t.Run("in bad times", func(t *testing.T) { testPagesInBadTimes(t, browser, shop.seenBy(t)) })
	t.Run("an operator in bad times", func(t *testing.T) { testConsoleInBadTimes(t, browser, shop.seenBy(t)) })
}

// TestEveryPageInEveryLook opens each page wide and narrow, light and dark: nothing may stick out on
// a phone, nothing may jump, and what assistive technology needs has to be there.
func TestEveryPageInEveryLook(t *testing.T) {
	browser := openBrowser(t)
	shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Packing: 10 * time.Millisecond}).stocked()
	email, password := newAccount(shop)
	customer := shop.as(email, password)
	order := customer.place("", lineItem{"product_id": "p-001", "quantity": 2}, lineItem{"product_id": "p-089", "quantity": 1})
	customer.ends(order, "dispatched")
	const operations = "/ops"
	// What a page loads before it asks the API: the document, styles, scripts and pictures of its own.
	const small, charts = 100 << 10, 280 << 10

	pages := []struct {
		name, path, ready string
		dialog            string // what opens one, if there is any
		budget            float64
	}{
		{"products", "/", `document.querySelectorAll('.card:not(.blank)').length === 24 && document.querySelectorAll('#categories a').length > 1`, "", small},
		{"product", "/products/p-089", `document.querySelector('#price').textContent !== ''`, "", small},
		{"basket", "/basket", `document.querySelectorAll('.line').length === 2`, "", small},
		{"sign-in", "/sign-in", `true`, "", small},
		{"sign-up", "/sign-up", `true`, "", small},
		{"sign-in-callback", "/sign-in/callback", `document.querySelector('#problem').textContent !== ''`, "", small},
		{"not-found", "/nowhere", `true`, "", small},
		{"checkout", "/checkout", `document.querySelector('#credit').textContent !== ''`, "", small},
		{"orders", "/orders", `document.querySelectorAll('#orders li').length > 0`, "", small},
		{"order", "/orders/" + order, `document.querySelectorAll('#steps [data-state=done]').length === 7 && document.querySelectorAll('#mails li').length > 0 && document.querySelector('#shipment').textContent.includes('DV')`, `document.querySelector('#sure').showModal()`, small},
		{"mails", "/mails", `document.querySelectorAll('#mails li').length > 0`, "", small},
		{"ops", operations, `document.querySelectorAll('#map .node-box[data-state]').length === 10 && document.querySelector('#verdict').textContent === 'all hold' && document.querySelector('#kind').options.length > 0`, "", charts},
		{"ops-sagas", "/ops/sagas", `document.querySelectorAll('#sagas tr').length > 0`, "", small},
		{"ops-saga", "/ops/sagas/" + order, `document.querySelectorAll('#plan .title').length > 7 && document.querySelectorAll('#history li').length > 7`, `import('/assets/js/operator.js').then(({ decide }) => decide('', 'Retry', 'The current step is tried again at once.'))`, small},
		{"ops-messages", "/ops/messages", `document.querySelectorAll('#boxes tr').length > 0 && document.querySelectorAll('#events li').length > 0`, "", small},
		{"ops-traces", "/ops/traces?order=" + order, `document.querySelectorAll('.spans li').length > 0`, "", small},
	}
	for _, look := range []struct {
		name          string
		width, height int64
		scheme        string
	}{
		{"light", 1280, 860, "light"},
		{"dark", 1280, 860, "dark"},
		{"phone-light", 360, 740, "light"},
		{"phone-dark", 360, 740, "dark"},
	} {
		t.Run(look.name, func(t *testing.T) {
			v := visit(t, browser, shop.url)
			v.mayComplain("/nowhere", "/api/sign-in/session")
			v.do("set the look", chromedp.EmulateViewport(look.width, look.height), func(ctx context.Context, _ *chromedp.Target) (chromedp.Void, error) {
				_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
					Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look.scheme}},
				})
				return chromedp.Void{}, err
			})
			v.do("come for the first time, to each page", func(ctx context.Context, _ *chromedp.Target) (chromedp.Void, error) {
				_, err := chromedp.Call(ctx, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true})
				return chromedp.Void{}, err
			})
			v.open("/sign-in")
			v.fills("p-001", "p-121")
			v.signsIn(email, password)
			v.arrives("/")
			for _, page := range pages {
				if page.path == operations {
					v.open("/sign-in?to=" + operations)
					v.signsIn("operator@shop.example", "dovetail-operator")
					v.arrives(operations)
				} else {
					v.open(page.path)
				}
				v.until(page.name+" is ready", page.ready)
				v.checkLook(page.name, look.scheme)
				v.checkOutline(page.name)
				if look.name != "phone-dark" { // the colours are those of dark, the places those of phone-light
					v.checkRules(page.name)
				}
				v.checkWeight(page.name, page.budget)
				v.tellTimes(page.name)
				v.picture(page.name)
				if page.dialog == "" {
					continue
				}
				v.evaluate(page.dialog)
				v.until("the dialog is open", `document.querySelector('dialog').open`)
				v.checkLook(page.name+", asked", look.scheme)
				v.checkRules(page.name + ", asked")
				v.picture(page.name + "-asked")
				v.press(kb.Escape)
				v.until("the dialog is closed", `!document.querySelector('dialog').open`)
			}
		})
	}
}

// TestPageOutlivesTheShop kills the shop under a customer's and an operator's page: both say so, wait, and go on by
// themselves when the shop is back.
func TestPageOutlivesTheShop(t *testing.T) {
	browser := openBrowser(t)
	data, addr := t.TempDir(), freeAddr(t)
	p := startShop(t, data, addr, "--packing", "24h")
	p.expect("The shop is open")
	shop := (&api{t: t, url: "http://" + addr}).stocked()

	console := visit(t, browser, shop.url)
	console.mayComplain("net::ERR_")
	console.open("/sign-in?to=/ops")
	console.signsIn("operator@shop.example", "dovetail-operator")
	console.arrives("/ops")
	console.until("the charts have a past", `document.querySelectorAll('#map .node-box[data-state=up]').length === 10`)

	v := visit(t, browser, shop.url).member(shop)
	v.mayComplain("net::ERR_")
	v.orders("p-001", "pm_slow")
	v.until("payment is at work", `document.querySelector('#steps li:nth-child(3)').dataset.state === 'working'`)
	_ = p.end(syscall.SIGKILL)
	v.sees("The connection is lost")
	v.picture("lost")
	console.sees("The connection is lost")
	console.evaluate(`scrollTo(0, document.body.scrollHeight)`)
	console.until("that can be read wherever one is", `(({ top, bottom }) => top >= 0 && bottom <= innerHeight)(document.querySelector('#connection').getBoundingClientRect())`)
	console.evaluate(`window.stopped = document.querySelector('#as-of').textContent`)
	console.picture("console-lost")
	startShop(t, data, addr, "--packing", "24h").expect("The shop is open")
	v.shows("#status", "confirmed")
	v.until("every step is done", `document.querySelectorAll('#steps [data-state=done]').length === 7`)
	v.until("the connection is back", `document.querySelector('#connection').hidden`)
	v.picture("back")
	console.until("the console goes on", `document.querySelector('#connection').hidden && document.querySelector('#as-of').textContent !== window.stopped`)
	console.evaluate(`window.stopped = document.querySelector('#as-of').textContent`)
	console.until("and on", `document.querySelector('#as-of').textContent !== window.stopped`)
	console.picture("console-back")
}

// openBrowser starts a headless Chromium that ends with the test.
func openBrowser(t *testing.T) context.Context {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	switch {
	case path == "":
		testserver.Missing(t, "there is no Chromium; scripts/install-chromium installs it")
	case testing.Short():
		t.Skip("a browser takes its time; run without -short")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("lang", "en-GB"))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium refuses to run as root with it
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	browser, closeBrowser := chromedp.NewContext(allocator)
	t.Cleanup(closeBrowser)
	if err := chromedp.Do(browser); err != nil {
		t.Fatalf("%s does not start: %v", path, err)
	}
	return browser
}

// visitor is a person at a browser of their own: two visitors share nothing but the shop.
type visitor struct {
	t        *testing.T
	ctx      context.Context
	url      string
	pictures int

	mu         sync.Mutex
	complaints []string
	allowed    []string
}

// visit opens a window. When the test ends, its console must not hold an error.
func visit(t *testing.T, browser context.Context, url string) *visitor {
	t.Helper()
	ctx, leave := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	v := &visitor{t: t, ctx: ctx, url: url, allowed: []string{"status of 503"}} // of a machine that is busy: the page asks again
	console := chromedp.Console(ctx)
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		for message, err := range console {
			if err != nil {
				return // the window is closed
			}
			if message.Type == "error" || message.IsException() {
				v.mu.Lock()
				v.complaints = append(v.complaints, message.String()+" "+message.URL)
				v.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		leave()
		<-listening
		for _, complaint := range v.complaints {
			if !v.expected(complaint) {
				t.Errorf("the console says: %s", complaint)
			}
		}
	})
	v.do("set the size", chromedp.EmulateViewport(1280, 860))
	return v
}

// mayComplain allows console errors with these texts: the browser itself writes one for every
// answer of 4xx.
func (v *visitor) mayComplain(texts ...string) { v.allowed = append(v.allowed, texts...) }

func (v *visitor) expected(complaint string) bool {
	for _, text := range v.allowed {
		if strings.Contains(complaint, text) {
			return true
		}
	}
	return false
}

// atLast is when a visitor gives up: never before a machine that has a dozen other things to do had its time.
const atLast = 4 * time.Minute

func (v *visitor) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, atLast)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		v.fail("%s: %v", what, err)
	}
}

// fail ends the test with a picture of what went wrong.
func (v *visitor) fail(format string, args ...any) {
	v.t.Helper()
	text := fmt.Sprintf(format, args...)
	ctx, cancel := context.WithTimeout(v.ctx, 5*time.Second)
	defer cancel()
	if png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot()); err == nil {
		v.keep("failure", png)
	}
	where, _ := chromedp.Run(ctx, chromedp.Location())
	page, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`))
	v.t.Fatalf("%s\nat %s, which reads:\n%s", text, where, page)
}

// evaluate runs JavaScript; a page that is just being left counts as false.
func (v *visitor) evaluate(js string) bool {
	ok, err := chromedp.Run(v.ctx, chromedp.Evaluate[bool](`Boolean((() => { `+js+` })())`))
	return ok && err == nil
}

// until waits until the expression is true.
func (v *visitor) until(what, js string) {
	v.t.Helper()
	for late := time.Now().Add(atLast); !v.evaluate("return " + js); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(late) || v.ctx.Err() != nil {
			v.fail("it does not come true that %s: %s", what, js)
		}
	}
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

func (v *visitor) open(path string) {
	v.t.Helper()
	v.do("open "+path, chromedp.Navigate(v.url+path))
}

// arrives waits until the page of this path is there; one that ends in "/" stands for all below it.
func (v *visitor) arrives(path string) {
	v.t.Helper()
	test := "location.pathname === " + quote(path)
	if strings.HasSuffix(path, "/") && path != "/" {
		test = "location.pathname.startsWith(" + quote(path) + ")"
	}
	v.until("the page is "+path, test+" && document.readyState === 'complete'")
}

// sees waits until the text can be read anywhere on the page.
func (v *visitor) sees(text string) {
	v.t.Helper()
	v.until("the page says "+text, "document.body.innerText.includes("+quote(text)+")")
}

// shows waits until the first element has this text.
func (v *visitor) shows(selector, text string) {
	v.t.Helper()
	v.until(selector+" shows "+text, fmt.Sprintf("document.querySelector(%s)?.textContent.trim() === %s", quote(selector), quote(text)))
}

func (v *visitor) text(selector string) string {
	v.t.Helper()
	v.until(selector+" is there", "document.querySelector("+quote(selector)+")")
	text, err := chromedp.Run(v.ctx, chromedp.TextContent(chromedp.CSS(selector)))
	if err != nil {
		v.fail("read %s: %v", selector, err)
	}
	return text
}

func (v *visitor) clicks(selector string) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, atLast)
	defer cancel()
	for {
		err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
		if err == nil {
			return
		}
		// A live list may have been written anew between the look for it and the click.
		if ctx.Err() != nil || !strings.Contains(err.Error(), "Could not find node") {
			v.fail("click %s: %v", selector, err)
		}
	}
}

func (v *visitor) types(selector, text string) {
	v.t.Helper()
	v.do("type into "+selector, chromedp.SendKeys(chromedp.CSS(selector), text, chromedp.NodeVisible))
}

func (v *visitor) press(keys ...string) {
	v.t.Helper()
	for _, k := range keys {
		v.do("press "+quote(k), chromedp.KeyEvent(k))
	}
}

// tabsTo presses Tab until the element has the focus, which must be visible at every stop.
func (v *visitor) tabsTo(selector string) {
	v.t.Helper()
	for range 120 {
		v.press(kb.Tab)
		if v.evaluate(`const e = document.activeElement;
			if (e === document.body) return false;
			return [e, e.closest('.card, label')].every((x) => !x || getComputedStyle(x).outlineStyle === 'none')`) {
			v.fail("the focus cannot be seen")
		}
		if v.evaluate("return document.activeElement.matches(" + quote(selector) + ")") {
			return
		}
	}
	v.fail("Tab does not reach %s", selector)
}

func (v *visitor) signsIn(email, password string) {
	v.t.Helper()
	v.types("#email", email)
	v.types("#password", password)
	v.clicks("[type=submit]")
}

// member is the visitor signed in as a new customer.
func (v *visitor) member(shop *api) *visitor {
	v.t.Helper()
	v.open("/sign-in")
	v.signsIn(newAccount(shop))
	v.arrives("/")
	return v
}

// newAccount signs a new customer up.
func newAccount(shop *api) (email, password string) {
	shop.t.Helper()
	email, password = kernel.NewID()+"@shop.example", "a-password"
	shop.want(http.StatusCreated, shop.send("POST", "/api/customers", nil, map[string]string{"name": "Nora Newcomer", "email": email, "password": password}), nil)
	return email, password
}

// fills puts products into the basket without going around for them.
func (v *visitor) fills(products ...string) {
	v.t.Helper()
	lines := make([]map[string]any, len(products))
	for i, id := range products {
		line := map[string]any{"id": id, "name": "Something gone", "price": 1000, "currency": "EUR"}
		if got := (&api{t: v.t, url: v.url}).send(http.MethodGet, "/api/products/"+id, nil, nil); got.status == http.StatusOK {
			_ = json.Unmarshal(got.body, &line)
		}
		line["quantity"] = 1
		lines[i] = line
	}
	basket, _ := json.Marshal(lines)
	v.evaluate("localStorage.basket = " + quote(string(basket)))
}

// orders places an order for one product and stays on its page.
func (v *visitor) orders(product, method string) {
	v.t.Helper()
	v.fills(product)
	v.open("/checkout")
	v.sees("Your free credit")
	v.clicks("[value=" + method + "]")
	v.clicks("#place")
	v.arrives("/orders/")
}

// hold keeps the answers to these requests from the page. The channel tells of the first.
func (v *visitor) hold(urls string) <-chan struct{} {
	v.t.Helper()
	first := make(chan struct{})
	paused := chromedp.Events(v.ctx, fetch.RequestPaused)
	go func() {
		defer close(first)
		for range paused {
			return
		}
	}()
	if _, err := chromedp.Call(v.ctx, fetch.Enable, fetch.EnableParams{
		Patterns: []*fetch.RequestPattern{{URLPattern: urls, RequestStage: fetch.RequestStageResponse}},
	}); err != nil {
		v.fail("hold %s: %v", urls, err)
	}
	return first
}

// release lets go what hold holds.
func (v *visitor) release() {
	v.t.Helper()
	if _, err := chromedp.Call(v.ctx, fetch.Disable, cdp.Empty{}); err != nil {
		v.fail("release: %v", err)
	}
}

// checkLook holds a page to what every page promises.
func (v *visitor) checkLook(page, scheme string) {
	v.t.Helper()
	look, err := chromedp.Run(v.ctx, chromedp.Evaluate[struct {
		Overflow, Shift, Ground, Ink float64
		Lacks                        []string
	}](`(async () => {
		const shift = await new Promise((resolve) => {
			let sum = 0;
			new PerformanceObserver((list) => list.getEntries().forEach((e) => { if (!e.hadRecentInput) sum += e.value; })).observe({ type: 'layout-shift', buffered: true });
			setTimeout(() => resolve(sum), 50);
		});
		const light = (color) => { const [r, g, b] = color.match(/[\d.]+/g).map(Number); return (r + g + b) / 765; };
		const visible = (e) => e.checkVisibility({ visibilityProperty: true });
		const named = (e) => (e.innerText || e.textContent || e.ariaLabel || [...(e.labels ?? [])].map((l) => l.textContent).join('') || '').trim() !== '';
		const lacks = ['header', 'nav[aria-label]', 'main', 'footer'].filter((s) => !document.querySelector(s)).map((s) => 'landmark ' + s);
		if (document.querySelectorAll('h1').length !== 1) lacks.push('one h1');
		if (document.documentElement.lang !== 'en') lacks.push('its language');
		for (const e of document.querySelectorAll('a, button, input, select')) if (visible(e) && !named(e)) lacks.push('a name for ' + e.outerHTML);
		for (const e of document.querySelectorAll('[style]:not(.uplot, .uplot *), style, script:not([src])')) lacks.push('a file of its own for ' + e.outerHTML);
		for (const e of document.querySelectorAll('main button, .button, input:not([type=radio], [type=checkbox]), select')) {
			if (visible(e) && !e.matches('.plain') && e.getBoundingClientRect().height < 44) lacks.push('44 pixels for ' + e.outerHTML);
		}
		for (const e of document.querySelectorAll('#connection, #summary, #progress, #problem, #refused, #toast, .error.whole')) if (!e.matches('[role=status], [role=alert]')) lacks.push('a voice for ' + e.outerHTML);
		for (const e of document.querySelectorAll('[id$=-error]')) if (!document.querySelector('[aria-describedby~="' + e.id + '"]')) lacks.push('a field for ' + e.outerHTML);
		const body = getComputedStyle(document.body);
		return { Overflow: document.documentElement.scrollWidth - innerWidth, Shift: shift, Ground: light(body.backgroundColor), Ink: light(body.color), Lacks: lacks };
	})()`, chromedp.EvalAwaitPromise))
	if err != nil {
		v.fail("%s: %v", page, err)
	}
	if look.Overflow > 0 {
		v.t.Errorf("%s is %v pixels wider than the window", page, look.Overflow)
	}
	if look.Shift > 0.05 { // 0.1 is what counts as good, https://web.dev/articles/cls
		v.t.Errorf("%s: cumulative layout shift = %.3f, want at most 0.05", page, look.Shift)
	}
	if dark := look.Ground < look.Ink; dark != (scheme == "dark") {
		v.t.Errorf("%s: ground %.2f, ink %.2f; want them %s", page, look.Ground, look.Ink, scheme)
	}
	for _, lack := range look.Lacks {
		v.t.Errorf("%s lacks %s", page, lack)
	}
}

// picture keeps a screenshot of the whole page.
func (v *visitor) picture(name string) {
	v.t.Helper()
	png, err := chromedp.Run(v.ctx, chromedp.FullScreenshot(100))
	for range 10 { // the browser may be busy with the page's frame just then
		if err == nil || v.ctx.Err() != nil {
			break
		}
		time.Sleep(200 * time.Millisecond)
		png, err = chromedp.Run(v.ctx, chromedp.FullScreenshot(100))
	}
	if err != nil {
		v.fail("picture of %s: %v", name, err)
	}
	v.keep(name, png)
}

func (v *visitor) keep(name string, png []byte) {
	v.t.Helper()
	folder := v.t.ArtifactDir()
	if pictures := os.Getenv("SHOP_PICTURES"); pictures != "" {
		folder = filepath.Join(pictures, strings.ReplaceAll(v.t.Name(), "/", "-"))
		if err := os.MkdirAll(folder, 0o750); err != nil {
			v.t.Error(err)
		}
	}
	v.pictures++
	if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%02d-%s.png", v.pictures, name)), png, 0o600); err != nil {
		v.t.Error(err)
	}
}
