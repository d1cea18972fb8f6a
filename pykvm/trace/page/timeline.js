/* The canvases: an overview of the whole run, and the tracks of the part that is chosen. */
const LABELS = 132, RULER = 26, BAR = 21, GAP = 8, GROUP = 22;

class Timeline {
  constructor(model, { onSelect, onView }) {
    this.model = model;
    this.onSelect = onSelect;
    this.onView = onView;
    this.canvas = document.getElementById("tracks");
    this.overview = document.getElementById("overview");
    this.tip = document.getElementById("tip");
    this.from = model.from;
    this.to = model.to;
    this.selected = -1;
    this.found = null;
    this.drag = null;
    this.layout();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(document.getElementById("scroller"));
  }

  /* Where each row begins; a group has a headline. */
  layout() {
    let y = RULER + 4, group = null;
    for (const row of this.model.rows) {
      if (row.group !== group) { row.headline = y; y += GROUP; group = row.group; } else row.headline = null;
      row.y = y;
      row.height = (row.deepest + 1) * BAR + GAP;
      y += row.height;
    }
    this.height = y + 8;
  }

  // ---- what is seen

  get width() { return this.canvas.clientWidth - LABELS; }
  x(time) { return LABELS + (time - this.from) / (this.to - this.from) * this.width; }
  time(x) { return this.from + (x - LABELS) / this.width * (this.to - this.from); }

  view(from, to) {
    const { from: least, to: most } = this.model, room = (most - least) * 0.02;
    const span = Math.max(Math.min(to - from, (most - least) + 2 * room), 20);
    from = Math.max(Math.min(from, most + room - span), least - room);
    this.from = from;
    this.to = from + span;
    this.draw();
    this.onView();
  }

  zoom(factor, at = (this.from + this.to) / 2) {
    this.view(at - (at - this.from) * factor, at + (this.to - at) * factor);
  }

  move(part) { const by = (this.to - this.from) * part; this.view(this.from + by, this.to + by); }
  fit() { this.view(this.model.from, this.model.to); }

  focus(item, part = 0.3) {
    if (item < 0) return;
    const start = this.model.start[item], takes = Math.max(this.model.takes[item], 0);
    const span = Math.max(takes / part, 100);
    this.view(start + takes / 2 - span / 2, start + takes / 2 + span / 2);
  }

  /* Select; where the event is not in sight, go there without a change of scale. */
  select(item) {
    this.selected = item;
    if (item >= 0) {
      const start = this.model.start[item], span = this.to - this.from;
      if (start < this.from || start > this.to) this.view(start - span / 2, start + span / 2);
    }
    this.draw();
  }

  // ---- drawing

  draw() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => { this.isDue = false; this.paint(); this.paintOverview(); });
  }

  prepare(canvas, height) {
    const scale = window.devicePixelRatio || 1, width = canvas.clientWidth;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.height = `${height}px`;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    const style = getComputedStyle(document.body);
    this.ink = Object.fromEntries(["back", "panel", "line", "text", "dim", "accent", "shade", "mark", "found"]
      .map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    return [pen, width];
  }

  paint() {
    const height = this.height;
    const [pen, width] = this.prepare(this.canvas, height);
    pen.fillStyle = this.ink.panel;
    pen.fillRect(0, 0, width, height);
    this.ruler(pen, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(LABELS, RULER, width - LABELS, height - RULER);
    pen.clip();
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    for (const row of this.model.rows) this.row(pen, row);
    this.frame(pen);
    pen.restore();
    this.labels(pen, width);
    if (this.drag && this.drag.range) {
      pen.fillStyle = "rgba(128,128,160,.25)";
      pen.fillRect(Math.min(this.drag.x, this.drag.now), RULER, Math.abs(this.drag.now - this.drag.x), height);
    }
  }

  ruler(pen, width, height) {
    const wanted = (this.to - this.from) / Math.max(this.width / 110, 1), power = 10 ** Math.floor(Math.log10(wanted));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= wanted);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    for (let t = Math.ceil(this.from / step) * step; t <= this.to; t += step) {
      const x = Math.round(this.x(t)) + 0.5;
      if (x < LABELS) continue;
      pen.fillStyle = this.ink.line;
      pen.fillRect(x, RULER - 5, 1, height);
      pen.fillStyle = this.ink.dim;
      pen.fillText(rulerText(t, step), x + 4, RULER / 2);
    }
    pen.fillStyle = this.ink.line;
    pen.fillRect(0, RULER, width, 1);
  }

  /* One row. What falls on one pixel is drawn once, so a million events cost as much as a thousand. */
  row(pen, row) {
    const model = this.model, scale = this.width / (this.to - this.from), ends = [];
    for (let i = model.first(row, this.from); i < row.items.length; i++) {
      const item = row.items[i];
      const [from, to] = model.span(row, item);
      if (from > this.to) break;
      if (to < this.from || model.hidden.has(model.shapeOf(item).kind)) continue;
      const depth = row.depth[i], left = LABELS + (from - this.from) * scale;
      const right = Math.max(LABELS + (to - this.from) * scale, left + 1);
      const isFound = this.found && this.found.has(item) && !row.isGuest;
      if (right <= ends[depth] && !isFound) continue;
      this.bar(pen, row, item, Math.max(left, LABELS - 2), right, row.y + depth * BAR, isFound);
      ends[depth] = Math.max(Math.ceil(right - 0.5), left + 1);
    }
  }

  bar(pen, row, item, left, right, y, isFound) {
    const shape = this.model.shapeOf(item), width = Math.min(right, this.canvas.clientWidth + 2) - left;
    pen.globalAlpha = this.found && !isFound ? 0.22 : 1;
    pen.fillStyle = row.isGuest ? guestColour(shape) : shape.colour;
    if (shape.kind === "mark" && !row.isGuest) pen.fillStyle = this.ink.mark;
    pen.fillRect(left, y, width > 3 ? width - 0.6 : width, BAR - 2);
    if (isFound && width < 6) { pen.fillStyle = this.ink.found; pen.fillRect(left - 1, y + BAR - 4, 3, 3); }
    if (width > 26) this.caption(pen, row.isGuest ? duration(this.model.after[item]) : this.caption_of(item, width), left, width, y);
    pen.globalAlpha = 1;
  }

  caption_of(item, width) { return width > 230 ? this.model.textOf(item) : this.model.shapeOf(item).title; }

  caption(pen, text, left, width, y) {
    const room = Math.floor((width - 8) / 5.6);
    pen.fillStyle = "#fff";
    pen.fillText(text.length > room ? `${text.slice(0, Math.max(room - 1, 1))}…` : text, left + 4, y + BAR / 2 - 0.5, width - 5);
  }

  frame(pen) {
    if (this.selected < 0) return;
    const row = this.model.shapeOf(this.selected).row, place = row.items.indexOf(this.selected);
    const [from, to] = this.model.span(row, this.selected);
    const left = this.x(from), right = Math.max(this.x(to), left + 2);
    pen.strokeStyle = this.ink.text;
    pen.lineWidth = 2;
    pen.strokeRect(left - 1, row.y + row.depth[place] * BAR - 1, right - left + 2, BAR);
    pen.fillStyle = this.ink.text;
    pen.globalAlpha = 0.35;
    pen.fillRect(left, RULER, 1, this.height);
    pen.globalAlpha = 1;
  }

  labels(pen, width) {
    pen.fillStyle = this.ink.panel;
    pen.fillRect(0, RULER + 1, LABELS - 1, this.height);
    pen.fillStyle = this.ink.line;
    pen.fillRect(LABELS - 1, 0, 1, this.height);
    for (const row of this.model.rows) {
      if (row.headline !== null) {
        pen.fillStyle = this.ink.shade;
        pen.fillRect(0, row.headline, LABELS - 1, GROUP - 3);
        pen.fillStyle = this.ink.text;
        pen.font = "600 12px system-ui, sans-serif";
        pen.fillText(row.group, 12, row.headline + GROUP / 2 - 1);
      }
      pen.fillStyle = row.isGuest ? "hsl(182 42% 46%)" : `hsl(${HUES[row.track] ?? HUES["guest kernel"]} 55% 50%)`;
      pen.fillRect(14, row.y + 3, 4, BAR - 8);
      pen.fillStyle = this.ink.dim;
      pen.font = "12px system-ui, sans-serif";
      pen.fillText(row.isGuest ? "guest (KVM_RUN)" : row.track, 24, row.y + BAR / 2 - 1, LABELS - 28);
    }
    pen.fillStyle = this.ink.dim;
    pen.font = "11px system-ui, sans-serif";
    pen.fillText(`${duration(this.to - this.from)} shown`, 12, RULER / 2);
  }

  /* Events per pixel over the whole run, and the part that is chosen. */
  paintOverview() {
    const height = 44, [pen, width] = this.prepare(this.overview, height), model = this.model;
    pen.fillStyle = this.ink.panel;
    pen.fillRect(0, 0, width, height);
    if (!this.density || this.density.length !== width) this.density = this.count(width);
    const most = Math.max(1, ...this.density.map((c) => c.all));
    this.density.forEach((column, x) => {
      let y = height;
      for (const layer of LAYERS) {
        const part = column.by[layer];
        if (!part) continue;
        const h = Math.max((height - 8) * Math.sqrt(part / most), 1);
        pen.fillStyle = `hsl(${HUES[layer]} 52% 52%)`;
        pen.fillRect(x, y - h, 1, h);
        y -= h;
      }
    });
    const span = model.to - model.from, left = (this.from - model.from) / span * width, right = (this.to - model.from) / span * width;
    pen.fillStyle = this.ink.back;
    pen.globalAlpha = 0.72;
    pen.fillRect(0, 0, left, height);
    pen.fillRect(right, 0, width - right, height);
    pen.globalAlpha = 1;
    pen.strokeStyle = this.ink.accent;
    pen.strokeRect(left + 0.5, 0.5, Math.max(right - left - 1, 1), height - 1);
  }

  count(width) {
    const model = this.model, columns = Array.from({ length: width }, () => ({ all: 0, by: {} }));
    for (let i = 0; i < model.count; i++) {
      if (!model.isShown(i)) continue;
      const x = Math.min(Math.floor((model.start[i] - model.from) / (model.to - model.from) * width), width - 1);
      const layer = model.shapeOf(i).layer, column = columns[Math.max(x, 0)];
      column.all++;
      column.by[layer] = (column.by[layer] || 0) + 1;
    }
    return columns;
  }

  // ---- mouse

  /* The event under the mouse, -1 for none; the nearest within 3 pixels counts. */
  hit(x, y) {
    if (x < LABELS) return [-1, null];
    for (const row of this.model.rows) {
      if (y < row.y || y >= row.y + row.height) continue;
      const depth = Math.floor((y - row.y) / BAR), time = this.time(x), near = 3 * (this.to - this.from) / this.width;
      let best = -1, distance = near;
      for (let i = this.model.first(row, time - near); i < row.items.length; i++) {
        const item = row.items[i], [from, to] = this.model.span(row, item);
        if (from > time + near) break;
        if (row.depth[i] !== depth || !this.model.isShown(item)) continue;
        const off = time < from ? from - time : time > to ? time - to : 0;
        if (off <= distance) { best = item; distance = off; }
      }
      return [best, row];
    }
    return [-1, null];
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.move((event.deltaX || event.deltaY) / 1200);
      else this.zoom(Math.exp(event.deltaY / 420), this.time(Math.max(event.offsetX, LABELS)));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.drag = { x: event.offsetX, now: event.offsetX, from: this.from, to: this.to, range: event.shiftKey };
      canvas.classList.add(event.shiftKey ? "range" : "moving");
    });
    canvas.addEventListener("pointermove", (event) => this.drag ? this.dragged(event) : this.hover(event));
    canvas.addEventListener("pointerup", (event) => this.dropped(event));
    canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    const choose = (event) => {
      const { from, to } = this.model, middle = from + event.offsetX / this.overview.clientWidth * (to - from);
      const half = (this.to - this.from) / 2;
      this.view(middle - half, middle + half);
    };
    this.overview.addEventListener("pointerdown", (event) => { this.overview.setPointerCapture(event.pointerId); choose(event); });
    this.overview.addEventListener("pointermove", (event) => { if (event.buttons) choose(event); });
  }

  dragged(event) {
    this.tip.hidden = true;
    this.drag.now = event.offsetX;
    if (this.drag.range) { this.draw(); return; }
    const by = (this.drag.x - event.offsetX) / this.width * (this.drag.to - this.drag.from);
    this.view(this.drag.from + by, this.drag.to + by);
  }

  dropped(event) {
    const drag = this.drag;
    this.drag = null;
    this.canvas.classList.remove("moving", "range");
    if (!drag) return;
    if (Math.abs(event.offsetX - drag.x) < 4) {
      this.onSelect(this.hit(event.offsetX, event.offsetY)[0]);
    } else if (drag.range) {
      const [a, b] = [this.time(drag.x), this.time(event.offsetX)].sort((p, q) => p - q);
      this.view(a, b);
    }
    this.draw();
  }

  hover(event) {
    const [item, row] = this.hit(event.offsetX, event.offsetY), tip = this.tip;
    tip.hidden = item < 0;
    if (item < 0) return;
    const model = this.model, shape = model.shapeOf(item);
    const line = (text, name) => { const div = document.createElement("div"); div.textContent = text; div.className = name; return div; };
    tip.replaceChildren(...row.isGuest
      ? [line(`guest ${shape.cpl === 3 ? "user" : "kernel"} for ${duration(model.after[item])}`, ""), line(`left by ${model.textOf(item)}`, "dim")]
      : [line(model.textOf(item), ""), line([duration(model.takes[item]) && `takes ${duration(model.takes[item])}`,
        `at ${seconds(model.start[item])} s`, shape.where].filter(Boolean).join(" · "), "dim")]);
    const box = document.getElementById("timeline").getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    tip.style.left = `${Math.min(x + 14, box.width - tip.offsetWidth - 8)}px`;
    tip.style.top = `${y + 18 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 10 : y + 18}px`;
  }
}

function rulerText(ns, step) {
  for (const [size, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]])
    if (step >= size / 100) return `${(ns / size).toFixed(Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9)))} ${unit}`;
  return `${Math.round(ns)} ns`;
}
