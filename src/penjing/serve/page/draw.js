// Pictures as SVG: each function empties its element and draws into it.

const SVG = 'http://www.w3.org/2000/svg';
const COLOURS = ['#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377', '#999999'];
// few bits dark violet, many bits yellow: viridis, readable on light and dark
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

export function make(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function picture(element, width, height, label) {
  const svg = make('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label });
  element.replaceChildren(svg);
  return svg;
}

/** Pixels across, so that words keep their size on a phone. */
function room(element) {
  return Math.max(280, Math.round(element.clientWidth) || 600);
}

function text(x, y, words, anchor = 'start', kind = '') {
  return make('text', { x, y, 'text-anchor': anchor, class: kind }, words);
}

function titled(node, words) {
  node.append(make('title', {}, words));
  return node;
}

export function short(value) {
  if (value === null || value === undefined) return '–';
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e12) return `${(value / 1e12).toPrecision(3)} T`;
  if (size >= 1e9) return `${(value / 1e9).toPrecision(3)} G`;
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)} M`;
  if (size >= 1e4) return `${(value / 1e3).toPrecision(3)} k`;
  return String(Number(value.toPrecision(3)));
}

export function bytes(value) {
  if (value === null || value === undefined) return '–';
  for (const [name, size] of [['GiB', 2 ** 30], ['MiB', 2 ** 20], ['KiB', 2 ** 10]]) {
    if (value >= size) return `${(value / size).toPrecision(3)} ${name}`;
  }
  return `${value} B`;
}

export function seconds(value) {
  if (value === null || value === undefined) return '–';
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toPrecision(3)} s`;
}

/** Values over time, newest right, with what was predicted as a dashed line in its band. */
export function series(element, values, predicted, show, label) {
  const width = room(element), height = 110, left = 76, floor = height - 8;
  const seen = values.filter((v) => v !== null);
  const high = Math.max(1e-9, ...seen, predicted?.value ?? 0) * 1.15;
  const svg = picture(element, width, height, `${label}: now ${show(values.at(-1) ?? null)}`);
  const y = (v) => floor - (Math.min(v, high) / high) * (floor - 10);
  const x = (i) => left + (i / Math.max(1, values.length - 1)) * (width - left - 6);
  svg.append(make('line', { x1: left, y1: floor, x2: width, y2: floor, class: 'axis' }), text(left - 6, floor, '0', 'end'),
    text(left - 6, 16, high > 1e-8 ? show(high / 1.15) : '', 'end'));
  if (predicted && predicted.value !== null) {
    const top = y(predicted.high), bottom = y(predicted.low);
    svg.append(
      make('rect', { x: left, y: top, width: width - left, height: Math.max(1, bottom - top), class: 'band' }),
      make('line', { x1: left, x2: width, y1: y(predicted.value), y2: y(predicted.value), class: 'predicted' }),
    );
  }
  let path = '', pen = false;
  values.forEach((v, i) => {
    if (v === null) { pen = false; return; }
    path += `${pen ? 'L' : 'M'}${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
    pen = true;
  });
  svg.append(make('path', { d: path || 'M0 0', class: 'series' }));
}

function tint(bits) {
  const at = Math.max(0, Math.min(1, (bits - 2) / 14)) ** 0.6 * (SCALE.length - 1);
  const low = Math.min(SCALE.length - 2, Math.floor(at)), share = at - low;
  const mixed = SCALE[low].map((c, i) => Math.round(c + share * (SCALE[low + 1][i] - c)));
  return `rgb(${mixed.join(',')})`;
}

/** The type of every matrix: roles down, layers across. */
export function heat(element, key, types) {
  const layers = 1 + Math.max(-1, ...types.cells.map(([, layer]) => layer ?? -1));
  const columns = layers + 1, left = 150, top = 8, row = 22, width = 1100;
  const cell = (width - left) / columns, height = top + types.roles.length * row + 24;
  const kinds = new Map();
  for (const [, , type, bits] of types.cells) kinds.set(type, bits);
  const svg = picture(element, width, height, `${types.cells.length} matrices in ${[...kinds.keys()].join(', ')}`);
  types.roles.forEach((role, i) => svg.append(text(left - 8, top + i * row + 15, role.replaceAll('_', ' '), 'end')));
  for (const [role, layer, type, bits, size] of types.cells) {
    const column = layer === null ? layers : layer;
    const box = make('rect', {
      x: (left + column * cell).toFixed(2), y: top + types.roles.indexOf(role) * row,
      width: Math.max(0.5, cell - 1).toFixed(2), height: row - 2, rx: 2, fill: tint(bits),
    });
    const where = layer === null ? 'outside the layers' : `layer ${layer}`;
    svg.append(titled(box, `${role.replaceAll('_', ' ')}, ${where}: ${type}, ${bits} bits, ${bytes(size)}`));
  }
  const step = Math.max(1, Math.ceil(layers / 16));
  for (let n = 0; n < layers; n += step) svg.append(text(left + (n + 0.5) * cell, height - 6, String(n), 'middle'));
  svg.append(text(left + (layers + 0.5) * cell, height - 6, '·', 'middle'));
  legend(key, [...kinds].sort((a, b) => a[1] - b[1]).map(([type, bits]) => [`${type} (${bits} bits)`, tint(bits)]));
}

function legend(element, entries) {
  element.replaceChildren(...entries.flatMap(([name, colour]) => {
    const swatch = document.createElement('span');
    swatch.className = 'swatch';
    swatch.style.background = colour;
    return [swatch, name];
  }));
}

/** Bytes by class, as one bar. */
export function memory(element, key, parts) {
  const used = parts.filter(([, size]) => size > 0), total = used.reduce((sum, [, size]) => sum + size, 0);
  const width = room(element), svg = picture(element, width, 56, `memory, ${bytes(total)} in all`);
  let x = 0;
  used.forEach(([name, size], i) => {
    const wide = (size / total) * width;
    svg.append(titled(make('rect', { x, y: 4, width: Math.max(1, wide - 1), height: 34, fill: COLOURS[i] }), `${name}: ${bytes(size)}`));
    x += wide;
  });
  svg.append(text(width, 53, `${bytes(total)} in all`, 'end', 'strong'));
  legend(key, used.map(([name, size], i) => [`${name} ${bytes(size)}`, COLOURS[i]]));
}

class Log {
  constructor(places, width, height, left, bottom) {
    const range = (i) => {
      const logs = places.map((p) => Math.log10(p[i]));
      return [Math.floor(Math.min(...logs)), Math.ceil(Math.max(...logs) + 1e-9)];
    };
    [this.x0, this.x1] = range(0);
    [this.y0, this.y1] = range(1);
    Object.assign(this, { width, height, left, bottom });
  }

  at([x, y]) {
    return [
      this.left + ((Math.log10(x) - this.x0) / (this.x1 - this.x0)) * (this.width - this.left - 24),
      this.height - this.bottom - ((Math.log10(y) - this.y0) / (this.y1 - this.y0)) * (this.height - this.bottom - 14),
    ].map((v) => Number(v.toFixed(1)));
  }

  grid(svg) {
    for (let i = this.x0; i <= this.x1; i++) {
      const [x, y] = this.at([10 ** i, 10 ** this.y0]), [, top] = this.at([1, 10 ** this.y1]);
      svg.append(make('line', { x1: x, x2: x, y1: y, y2: top, class: 'axis' }), text(x, y + 16, short(10 ** i), 'middle'));
    }
    for (let i = this.y0; i <= this.y1; i++) {
      const [x, y] = this.at([10 ** this.x0, 10 ** i]), [right] = this.at([10 ** this.x1, 1]);
      svg.append(make('line', { x1: x, x2: right, y1: y, y2: y, class: 'axis' }), text(x - 6, y + 4, short(10 ** i), 'end'));
    }
  }
}

/** What memory and kernels allow, and where the plan stands. Axes are logarithmic. */
export function roofline(element, machine, points) {
  const lines = machine.lines.map((line) => line.points), own = points.map((p) => p.at);
  const all = [...lines.flat(), ...own];
  if (!all.length) return;
  const tier = machine.tiers.find(([name]) => name === 'DRAM') ?? machine.tiers.at(-1);
  const slope = tier?.[2] ?? null;
  const width = room(element), axes = new Log(slope ? [...all, [1, slope]] : all, width, 340, 60, 30);
  const svg = picture(element, width, 340, 'roofline of this machine, with the decode and the prefill of the plan');
  axes.grid(svg);
  const path = (places) => places.map((p) => axes.at(p).join(' ')).join('L');
  const best = Math.max(...all.map((p) => p[1]));
  if (slope) {
    const left = 10 ** axes.x0, floor = 10 ** axes.y0, start = Math.max(left, floor / slope);
    svg.append(make('path', { d: `M${path([[start, start * slope], [best / slope, best], [10 ** axes.x1, best]])}`, class: 'roof' }));
  }
  machine.lines.forEach((line) => svg.append(titled(make('path', { d: `M${path(line.points)}`, class: 'kernel' }), line.name)));
  for (const point of points) {
    const [x, y] = axes.at(point.at);
    const words = `${point.name}: ${short(point.tokens_per_s.value)} tok/s predicted`;
    svg.append(titled(make('circle', { cx: x, cy: y, r: 6, class: 'point' }), words), text(x, y - 11, point.name, 'middle', 'strong'));
  }
}

/** Ways to run the model: seconds over bytes. */
export function frontier(element, ways, chosen) {
  const places = [...ways, chosen].filter((w) => w.memory_bytes && w.total_seconds);
  if (!places.length) return;
  const width = room(element), height = 260, left = 64, bottom = 34;
  const xs = places.map((w) => w.memory_bytes), ys = places.map((w) => w.total_seconds);
  const pad = (values) => {
    const low = Math.min(...values), high = Math.max(...values), room = (high - low || high) * 0.15;
    return [Math.max(0, low - room), high + room];
  };
  const [x0, x1] = pad(xs), [y0, y1] = pad(ys);
  const x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - 20);
  const y = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - bottom - 12);
  const svg = picture(element, width, height, `${ways.length} ways on the frontier, the chosen one takes ${seconds(chosen.total_seconds)} and ${bytes(chosen.memory_bytes)}`);
  svg.append(make('line', { x1: left, x2: left, y1: 8, y2: height - bottom, class: 'axis' }),
    make('line', { x1: left, x2: width, y1: height - bottom, y2: height - bottom, class: 'axis' }),
    text(left - 6, 18, seconds(y1), 'end'), text(left - 6, height - bottom, seconds(y0), 'end'),
    text(left, height - 12, bytes(x0)), text(width, height - 12, bytes(x1), 'end'));
  const dot = (way, kind) => svg.append(titled(
    make('circle', { cx: x(way.memory_bytes), cy: y(way.total_seconds), r: 6, class: kind }),
    `${seconds(way.total_seconds)}, ${bytes(way.memory_bytes)}${way.kld ? `, KL divergence ${short(way.kld)}` : ''}`));
  ways.forEach((way) => dot(way, 'other'));
  dot(chosen, 'chosen');
}
