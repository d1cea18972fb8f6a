/* The events as columns, and what can be asked about them. Times are ns since the run's start. */
const LAYERS = ["guest user", "guest kernel", "KVM", "pykvm", "host kernel"];
const HUES = { "guest user": 135, "guest kernel": 182, "KVM": 285, "pykvm": 30, "host kernel": 218 };

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

class Model {
  constructor(about, end) {
    this.about = about;
    this.end = end;
    this.count = 0;
    this.shapes = [];
    this.texts = [];
    this.rows = [];
    this.extra = new Map();
  }

  /* Every event block of the page, one after the other; `progress` is told the part that is done. */
  static async load(about, end, blocks, progress) {
    const model = new Model(about, end);
    const count = blocks.reduce((sum, block) => sum + Number(block.dataset.count), 0);
    for (const name of ["start", "takes", "after"]) model[name] = new Float64Array(count);
    for (const name of ["shape", "text"]) model[name] = new Int32Array(count);
    for (const block of blocks) {
      try {
        model.add(await inflate(block.textContent));
      } catch (error) {
        console.warn("a block of events can't be read", error);
      }
      block.remove();
      progress(model.count / count);
    }
    model.finish();
    return model;
  }

  add(block) {
    const shapeBase = this.shapes.length, textBase = this.texts.length, at = this.count;
    for (const shape of block.shapes) this.shapes.push(shape);
    for (const text of block.texts) this.texts.push(text);
    let time = block.base;
    for (let i = 0; i < block.time.length; i++) {
      time += block.time[i];
      this.start[at + i] = time;
      this.takes[at + i] = block.takes[i];
      this.after[at + i] = block.after[i];
      this.shape[at + i] = shapeBase + block.shape[i];
      this.text[at + i] = textBase + block.text[i];
    }
    for (const [i, more] of block.more) this.extra.set(at + i, more);
    this.count += block.time.length;
  }

  /* Rows for the timeline: a group (vCPU, process), a track in it, and its events in order. */
  finish() {
    const rows = new Map(), counts = new Map();
    const row = (group, track) => {
      const key = `${group}\n${track}`;
      if (!rows.has(key)) rows.set(key, { group, track, items: [], isGuest: track === "guest" });
      return rows.get(key);
    };
    for (const shape of this.shapes) {
      shape.row = row(shape.group, shape.track);
      shape.guestRow = shape.vcpu === null ? null : row(`vCPU ${shape.vcpu}`, "guest");
      shape.colour = colour(shape);
    }
    this.from = Infinity; this.to = 0;
    for (let i = 0; i < this.count; i++) {
      const shape = this.shapes[this.shape[i]];
      shape.row.items.push(i);
      if (this.after[i] >= 0 && shape.guestRow) shape.guestRow.items.push(i);
      counts.set(shape.kind, (counts.get(shape.kind) || 0) + 1);
      this.from = Math.min(this.from, this.start[i] - Math.max(this.after[i], 0));
      this.to = Math.max(this.to, this.start[i] + Math.max(this.takes[i], 0));
    }
    if (!this.count) this.from = 0, this.to = 1;
    if (this.to <= this.from) this.to = this.from + 1;
    this.kinds = counts;
    this.hidden = new Set();
    const rank = (r) => ["guest", ...LAYERS].indexOf(r.track);
    this.rows = [...rows.values()].filter((r) => r.items.length);
    const place = (r) => (r.group === "guest processes" ? 0 : r.group.startsWith("vCPU") ? 1 : 2); // as the work goes down
    this.rows.sort((a, b) => place(a) - place(b) || a.group.localeCompare(b.group, "en", { numeric: true }) || rank(a) - rank(b));
    for (const r of this.rows) this.nest(r);
  }

  /* Slices that lie in one another get rows of their own: 0 for the outermost. */
  nest(row) {
    row.items = Int32Array.from(row.items);
    row.depth = new Uint8Array(row.items.length);
    row.longest = 0;
    row.deepest = 0;
    const open = [];
    row.items.forEach((item, i) => {
      const [from, to] = this.span(row, item);
      while (open.length && open[open.length - 1] <= from) open.pop();
      row.depth[i] = Math.min(open.length, 5);
      row.deepest = Math.max(row.deepest, row.depth[i]);
      row.longest = Math.max(row.longest, to - from);
      open.push(to);
    });
  }

  /* Where an event lies on a row: on that of the guest it is the stay before the exit. */
  span(row, item) {
    const start = this.start[item];
    return row.isGuest ? [start - this.after[item], start] : [start, start + Math.max(this.takes[item], 0)];
  }

  shapeOf(item) { return this.shapes[this.shape[item]]; }
  textOf(item) { return this.texts[this.text[item]]; }
  isShown(item) { return !this.hidden.has(this.shapeOf(item).kind); }

  /* The place in a row of the first item that may reach past `time`. */
  first(row, time) {
    let low = 0, high = row.items.length;
    const wanted = time - row.longest;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.span(row, row.items[middle])[0] < wanted) low = middle + 1; else high = middle;
    }
    return low;
  }

  /* The first event that starts at `time` or later. */
  at(time) {
    let low = 0, high = this.count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.start[middle] < time) low = middle + 1; else high = middle;
    }
    return low;
  }

  /* Each word must be somewhere in the event's text, name, place, process or thread. */
  find(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return null;
    const hay = this.shapes.map((s) => [s.kind, s.layer, s.title, s.via, s.where, s.task, s.container, s.thread].join(" ").toLowerCase());
    const lower = this.texts.map((text) => text.toLowerCase());
    const found = [];
    for (let i = 0; i < this.count; i++) {
      const shape = hay[this.shape[i]], text = lower[this.text[i]];
      const more = this.extra.get(i);
      if (words.every((w) => text.includes(w) || shape.includes(w) || (more && more.code && more.code.toLowerCase().includes(w))))
        found.push(i);
    }
    return found;
  }

  /* Time by layer and by name between two moments; what lies across an edge counts with its part inside. */
  totals(from, to) {
    const layers = new Map(LAYERS.map((layer) => [layer, 0])), names = new Map();
    const part = (a, b) => Math.max(0, Math.min(b, to) - Math.max(a, from));
    for (let i = 0; i < this.count; i++) {
      const shape = this.shapeOf(i), start = this.start[i], takes = Math.max(this.takes[i], 0);
      if (this.after[i] > 0) {
        const guest = shape.cpl === 3 ? "guest user" : "guest kernel";
        layers.set(guest, layers.get(guest) + part(start - this.after[i], start));
      }
      if (start + takes < from || start > to) continue;
      const own = part(start, start + takes);
      if (shape.kind !== "syscall") layers.set(shape.layer, (layers.get(shape.layer) || 0) + own);
      let entry = names.get(shape.title);
      if (!entry) names.set(shape.title, (entry = { title: shape.title, colour: shape.colour, count: 0, sum: 0, times: [] }));
      entry.count++;
      entry.sum += own;
      entry.times.push(takes);
    }
    return { layers, names: [...names.values()].sort((a, b) => b.sum - a.sum || b.count - a.count) };
  }
}

function hash(text) {
  let value = 7;
  for (const c of text) value = (value * 31 + c.codePointAt(0)) >>> 0;
  return value;
}

/* A layer has its hue, a name its shade of it. */
function colour(shape) {
  const hue = HUES[shape.layer] ?? 0, shade = hash(shape.title);
  if (shape.kind === "note") return "hsl(0 0% 55%)";
  if (shape.kind === "hypercall") return `hsl(${334 + (shade % 5) * 5} 62% ${46 + (shade % 4) * 4}%)`;
  return `hsl(${hue + (shade % 7) * 4 - 12} ${52 + (shade % 4) * 6}% ${46 + (shade % 5) * 4}%)`;
}

function guestColour(shape) { return `hsl(${HUES[shape.cpl === 3 ? "guest user" : "guest kernel"]} 42% 46%)`; }

function duration(ns) {
  if (ns < 0 || ns === null) return "";
  if (ns < 1000) return `${Math.round(ns)} ns`;
  for (const [size, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]])
    if (ns >= size) {
      const value = ns / size;
      return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`;
    }
  return "";
}

function seconds(ns) { return (ns / 1e9).toFixed(9).replace(/(\.\d{3})(\d{3})(\d{3})$/, "$1 $2 $3"); }
