// The page: state and load from the server's JSON, and a chat over its own API.

import * as draw from './draw.js';

const $ = (id) => document.getElementById(id);
const KEPT_LOOKS = 120, LOOK_MS = 1000;
const history = { rate: [], first: [], queue: [] };
let state = null, last = null, running = null;
let talk = [], timer = null, planned = null, waved = false;

async function fetched(path, options = {}) {
  const key = sessionStorage.getItem('key');
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const reply = await fetch(path, { ...options, headers });
  if (reply.status === 401) {
    if (key && sessionStorage.getItem('key') === key) {
      sessionStorage.removeItem('key');
      $('key-hint').textContent = 'That key is not known here.';
    }
    if (!$('key-dialog').open && !waved) $('key-dialog').showModal();
    throw new Error('a key is needed');
  }
  return reply;
}

$('key-form').addEventListener('submit', (event) => {
  const key = $('key').value.trim();
  if (!/^[!-~]+$/.test(key)) {  // no header could carry it
    event.preventDefault();
    $('key-hint').textContent = 'A key has no spaces and no letters beyond ASCII.';
    return;
  }
  sessionStorage.setItem('key', key);
  $('key').value = $('key-hint').textContent = '';
  look();
});
$('key-dialog').addEventListener('cancel', () => { waved = true; });

// ---- what stays ----------------------------------------------------------------------------------------

function rows(table, header, lines) {
  const row = (cells, tag) => {
    const tr = document.createElement('tr');
    for (const words of cells) {
      const cell = document.createElement(tag);
      if (tag === 'th') cell.scope = 'col';
      cell.textContent = words;
      tr.append(cell);
    }
    return tr;
  };
  table.replaceChildren(row(header, 'th'), ...lines.map((line) => row(line, 'td')));
}

function estimate(e, show) {
  if (!e || e.value === null) return 'unknown';
  return e.low === e.high ? show(e.value) : `${show(e.value)} (${show(e.low)} to ${show(e.high)})`;
}

function showState() {
  const { model, machine, plan, memory, server } = state;
  document.title = `${model.name} · penjing`;
  $('model').textContent = model.name;
  $('machine').textContent = `on ${machine.name}, ${machine.cores}`;
  $('why').textContent = `Chosen: ${plan.why}.`;
  const speed = (v) => `${draw.short(v)} tok/s`;
  const figures = [
    ['decode', 'decode_tokens_per_s', speed], ['prefill', 'prefill_tokens_per_s', speed],
    ['first token', 'first_token_seconds', draw.seconds], ['whole request', 'total_seconds', draw.seconds],
    ['memory', 'memory_bytes', draw.bytes], ['KL divergence', 'kld', draw.short],
  ];
  rows($('estimates'), ['predicted', 'this plan', 'engine’s default'],
    figures.map(([name, key, show]) => [name, estimate(plan.estimate[key], show), estimate(plan.default?.[key], show)]));
  const s = plan.settings, w = plan.workload;
  $('settings').textContent = `For ${w.prompt_tokens} prompt + ${w.answer_tokens} answer tokens, ${server.slots} at a time, `
    + `${server.context_tokens} tokens of context each; ${s.threads} thread${s.threads > 1 ? 's' : ''}, ${s.build} build, flash attention ${s.flash_attention}, `
    + `${s.cache_type} cache, micro-batches of ${s.micro_batch}. ${server.queue} requests may wait.`;
  rows($('refused'), ['way', 'why not'], plan.refused.map((r) => [r.what, r.why]));
  $('notes').replaceChildren(...plan.notes.map((note) => Object.assign(document.createElement('li'), { textContent: note })));
  rows($('tiers'), ['memory tier', 'capacity', 'read rate'],
    machine.tiers.map(([name, size, rate]) => [name, draw.bytes(size), rate ? `${draw.bytes(rate)}/s` : 'unknown']));
  draw.roofline($('roofline'), machine, state.points);
  $('roof-hint').textContent = machine.lines.length
    ? 'Thin lines are kernels measured here, one for each type and layout; point at one for its name.'
    : '`penjing probe --kernels` measures the kernels of this machine; they are drawn here from then on.';
  draw.heat($('types'), $('types-key'), state.types);
  draw.memory($('memory'), $('memory-key'), [
    ['mapped weights', memory.weights_bytes], ['weights in memory', memory.repacked_bytes],
    ['cache', memory.cache_bytes], ['buffers', memory.compute_bytes], ['engine', memory.base_bytes],
  ]);
  draw.frontier($('frontier'), plan.frontier, plan.chosen);
  rows($('frontier-table'), ['memory', 'decode', 'whole request', 'KL divergence', 'why'],
    plan.frontier.map((c) => [draw.bytes(c.memory_bytes), speed(c.decode_tokens_per_s), draw.seconds(c.total_seconds), draw.short(c.kld), c.why || 'another way']));
}

// ---- what changes --------------------------------------------------------------------------------------

function keep(values, value) {
  values.push(value);
  if (values.length > KEPT_LOOKS) values.shift();
}

function scaled(e, factor) {
  return e && e.value !== null ? { value: e.value * factor, low: e.low * factor, high: e.high * factor } : null;
}

function showEngine(words, up) {
  if ($('engine').textContent !== words) $('engine').textContent = words;  // else it would be read out each second
  $('engine').className = up ? 'up' : 'down';
}

function showLive(now) {
  const words = { up: 'engine up', starting: 'engine starting', down: 'engine down, being started again', stopped: 'stopped' };
  showEngine(words[now.engine] ?? now.engine, now.engine === 'up');
  $('in-flight').textContent = `${now.in_flight} of ${now.slots}`;
  $('waiting').textContent = now.waiting;
  $('restarts').textContent = now.engine_restarts;
  $('requests').textContent = now.recent.requests;
  const rate = last && now.at > last.at ? Math.max(0, (now.tokens - last.tokens) / (now.at - last.at)) : null;
  last = now;
  keep(history.rate, rate);
  keep(history.first, now.recent.first_token_seconds);
  keep(history.queue, now.waiting);
  const expected = state.plan.estimate, speed = (v) => (v === null ? '–' : `${draw.short(v)} tok/s`);
  $('rate-now').textContent = speed(rate);
  $('first-now').textContent = draw.seconds(now.recent.first_token_seconds);
  $('queue-now').textContent = now.waiting;
  const users = Math.max(1, now.in_flight);
  const decode = users === state.server.slots ? scaled(expected.decode_tokens_per_s, users) : users === 1 && state.server.slots === 1 ? expected.decode_tokens_per_s : null;
  draw.series($('rate-chart'), history.rate, decode, speed, 'tokens a second');
  draw.series($('first-chart'), history.first, expected.first_token_seconds, draw.seconds, 'first token');
  draw.series($('queue-chart'), history.queue, null, draw.short, 'waiting requests');
}

async function look() {
  clearTimeout(timer);
  try {
    const reply = await fetched('/live.json');
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    const now = await reply.json();
    const plan = `${now.server} ${now.plans}`;
    if (plan !== planned) await renew(plan);
    showLive(now);
  } catch (error) {
    showEngine(error.message === 'a key is needed' ? 'a key is needed' : 'the server does not answer', false);
  }
  timer = setTimeout(look, LOOK_MS);
}

// ---- the chat ------------------------------------------------------------------------------------------

function bubble(role) {
  const article = document.createElement('article'), said = document.createElement('p');
  article.className = role;
  article.append(said);
  article.setAttribute('aria-label', role === 'user' ? 'you' : 'the model');
  $('talk').querySelector('.hint')?.remove();
  $('talk').append(article);
  return article;
}

function under(article, words, kind = 'said') {
  const note = document.createElement('p');
  note.className = kind;
  note.textContent = words;
  article.append(note);
}

function before(said, kind) {
  const text = document.createElement('p');
  text.className = kind;
  said.before(text);
  return text;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const lines = buffer.split('\n\n');
    buffer = lines.pop();
    for (const line of lines) {
      if (line.startsWith('data: ') && line !== 'data: [DONE]') yield JSON.parse(line.slice(6));
    }
  }
}

async function answer() {
  const mine = talk, article = bubble('assistant'), said = article.firstChild, started = performance.now();
  let content = '', thought = null, first = null, timings = null;
  article.setAttribute('aria-busy', 'true');  // it is read out once, when it is whole
  running = new AbortController();
  $('send').disabled = true;
  $('stop').disabled = false;
  try {
    const reply = await fetched('/v1/chat/completions', {
      method: 'POST', signal: running.signal, headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ messages: mine, stream: true, max_tokens: $('most').valueAsNumber || 256, temperature: $('temperature').valueAsNumber }),
    });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    for await (const event of events(reply.body)) {
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices?.[0]?.delta ?? {}, piece = delta.content;
      if (event.timings) timings = event.timings;
      if (piece || delta.reasoning_content) first ??= performance.now() - started;
      if (delta.reasoning_content) {
        thought ??= before(said, 'thought');
        thought.append(delta.reasoning_content);
      }
      if (!piece) continue;
      content += piece;
      said.append(piece);
      $('talk').scrollTop = $('talk').scrollHeight;
    }
  } catch (error) {
    if (error.name === 'AbortError') under(article, 'stopped');
    else under(article, error.message, 'said error');
  } finally {
    running = null;
    article.removeAttribute('aria-busy');
    $('send').disabled = false;
    $('stop').disabled = true;
  }
  if (content) mine.push({ role: 'assistant', content });
  else mine.pop();
  if (thought && !content) under(article, 'nothing was said after these thoughts: allow more tokens');
  if (timings) {
    const predicted = state?.plan.estimate.decode_tokens_per_s.value;
    under(article, `first token after ${draw.seconds((first ?? 0) / 1000)}, ${draw.short(timings.predicted_per_second)} tok/s`
      + (predicted ? ` (predicted ${draw.short(predicted)} at full load)` : ''));
  }
}

$('ask-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const words = $('ask').value.trim();
  if (!words || running) return;
  waved = false;
  $('ask').value = '';
  talk.push({ role: 'user', content: words });
  bubble('user').firstChild.textContent = words;
  answer();
});
$('ask').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $('ask-form').requestSubmit();
  }
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape') running?.abort(); });
$('stop').addEventListener('click', () => running?.abort());
$('clear').addEventListener('click', () => {
  running?.abort();
  talk = [];
  $('talk').replaceChildren();
  $('ask').focus();
});

let drawing = null;
window.addEventListener('resize', () => {
  clearTimeout(drawing);
  drawing = setTimeout(() => state && showState(), 150);
});

async function renew(plan) {
  state = await (await fetched('/state.json')).json();
  planned = plan;
  showState();
}

look();
