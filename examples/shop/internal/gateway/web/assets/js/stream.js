// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Server-sent events by fetch: EventSource cannot send an Authorization header.

import { Problem, open, wait } from './api.js';

const silence = 40_000; // ms; the server says something every 15 s
const longest = 8_000; // ms between two attempts to connect

// follow calls on({name, data}) for each event of a stream, and on({name: 'open'}) before the first of
// each connection. When the stream ends or breaks it calls lost() and connects again, until signal
// aborts. It throws only what connecting again cannot mend.
export async function follow(path, { on, lost, signal }) {
  for (let pause = 250; !signal.aborted; pause = Math.min(2 * pause, longest)) {
    const connection = new AbortController();
    const close = () => connection.abort();
    signal.addEventListener('abort', close, { once: true });
    let timer = setTimeout(close, silence);
    try {
      const response = await open('GET', path, { headers: { Accept: 'text/event-stream' }, signal: connection.signal });
      on({ name: 'open' });
      for await (const event of events(response.body)) {
        clearTimeout(timer);
        timer = setTimeout(close, silence);
        if (!event) continue; // only a sign of life
        pause = 250;
        on(event);
      }
    } catch (err) {
      if (!connection.signal.aborted && !(err instanceof Problem && err.unsure)) throw err;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', close);
    }
    if (signal.aborted) return;
    lost();
    await wait(pause * (0.5 + Math.random()), signal); // jitter: not all tabs at once
  }
}

// events parses a stream as the HTML standard says ("Interpreting an event stream"). It yields
// {name, data} per event, and null per comment.
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let name = '';
  let data = [];
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true }));
    if (done) return; // or broken; an event without its blank line is incomplete, and dropped
    rest += value;
    // A CR at the end may be half of a CR LF: it waits for what follows.
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      const [, field, text] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (line === '') {
        if (data.length) yield { name: name || 'message', data: data.join('\n') };
        name = '';
        data = [];
      } else if (field === '') yield null;
      else if (field === 'event') name = text;
      else if (field === 'data') data.push(text);
    }
  }
}
