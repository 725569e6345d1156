// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Who is signed in. The token lives as long as the tab: sessionStorage, never a cookie, so no
// other site can make the browser send it.

const key = 'session';

function read() {
  try {
    const session = JSON.parse(sessionStorage.getItem(key));
    return session && Date.parse(session.expires_at) > Date.now() ? session : null;
  } catch {
    return null;
  }
}

// account is {id, name, email, role} of who is signed in, or null.
export function account() { return read()?.account ?? null; }

export function token() { return read()?.token ?? ''; }

export function signedIn(session, account) {
  sessionStorage.setItem(key, JSON.stringify({ ...session, account }));
}

// signOut forgets the session, and returns where to go: to the issuer that signed the person in, so that the next
// one at this computer is not that person there, or home.
export function signOut() {
  const home = read()?.sign_out_url || '/';
  sessionStorage.removeItem(key);
  return home;
}

let leaving; // never resolves: the page is left

// leaveToSignIn goes to sign-in, which says so if a session has ended, and comes back.
export function leaveToSignIn() {
  leaving ??= new Promise(() => {
    const ended = sessionStorage.getItem(key) !== null;
    signOut();
    location.replace(`/sign-in?to=${encodeURIComponent(location.pathname + location.search)}${ended ? '&ended' : ''}`);
  });
  return leaving;
}

// comeBackTo is where sign-in leads to: a page of this shop, whatever the address says.
export function comeBackTo(wanted = new URLSearchParams(location.search).get('to')) {
  try {
    const to = new URL(wanted || '/', location.origin);
    if (to.origin === location.origin) return to.href; // whole: a path alone may begin with two slashes, and is then another site's
  } catch { /* not an address */ }
  return '/';
}
