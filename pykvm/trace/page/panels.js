/* The panels below the timeline: the selected event, the events as lines, whose time it was. */
const LINE = 19;

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

class Panels {
  constructor(model, select) {
    this.model = model;
    this.select = select;
    this.selected = -1;
    this.found = null;
    this.shown = model.count;
    this.index = null; // the events that are not hidden; null: all
    this.rows = document.getElementById("rows");
    this.rows.addEventListener("scroll", () => this.lines());
    new ResizeObserver(() => this.lines()).observe(this.rows);
    this.refresh();
  }

  /* After the hidden kinds have changed. */
  refresh() {
    const model = this.model;
    this.index = model.hidden.size ? Array.from({ length: model.count }, (_, i) => i).filter((i) => model.isShown(i)) : null;
    this.shown = this.index ? this.index.length : model.count;
    // a browser lets an element be some 10 million pixels high: beyond, a line stands for several
    this.scale = Math.max(1, this.shown * LINE / 9e6);
    document.getElementById("spacer").style.height = `${this.shown * LINE / this.scale}px`;
    document.getElementById("range").textContent = `${this.shown.toLocaleString("en")} of ${model.count.toLocaleString("en")}`;
    this.lines();
  }

  item(place) { return this.index ? this.index[place] : place; }

  place(item) {
    if (!this.index) return item;
    let low = 0, high = this.index.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.index[middle] < item) low = middle + 1; else high = middle;
    }
    return low;
  }

  // ---- the list

  lines() {
    const room = Math.ceil(this.rows.clientHeight / LINE) + 1, box = document.getElementById("lines");
    const first = Math.max(0, Math.min(Math.floor(this.rows.scrollTop * this.scale / LINE), this.shown - room + 1));
    const made = [];
    for (let place = first; place < Math.min(first + room, this.shown); place++) made.push(this.line(this.item(place)));
    box.style.transform = `translateY(${this.scale > 1 ? this.rows.scrollTop : first * LINE}px)`;
    box.replaceChildren(...made);
  }

  line(item) {
    const model = this.model, shape = model.shapeOf(item), line = element("li");
    const swatch = element("span", "", "swatch");
    swatch.style.cssText = `background:${shape.colour};align-self:center;margin:0;flex:none`;
    const text = element("span", `${shape.task ? `${shape.task}: ` : ""}${model.textOf(item)}`, "text");
    line.append(element("span", seconds(model.start[item]), "time"), element("span", shape.vcpu ?? "", "cpu"),
      element("span", duration(model.takes[item]), "takes"), swatch, text);
    if (item === this.selected) line.classList.add("on");
    if (this.found && this.found.has(item)) line.classList.add("found");
    line.addEventListener("click", () => this.select(item));
    return line;
  }

  show(item) {
    this.selected = item;
    if (item >= 0) {
      const y = this.place(item) * LINE / this.scale;
      if (y < this.rows.scrollTop || y > this.rows.scrollTop + this.rows.clientHeight - LINE)
        this.rows.scrollTop = y - this.rows.clientHeight / 2;
    }
    this.lines();
    this.details(item);
  }

  // ---- the selected event

  details(item) {
    const box = document.getElementById("details"), model = this.model;
    if (item < 0) { box.replaceChildren(element("h2", "Event"), element("p", "Nothing is selected.", "hint")); return; }
    const shape = model.shapeOf(item), more = model.extra.get(item) || {}, facts = element("dl");
    const fact = (name, value) => {
      if (value !== undefined && value !== null && value !== "") facts.append(element("dt", name), element("dd", String(value)));
    };
    fact("starts", `${seconds(model.start[item])} s`);
    fact("takes", duration(model.takes[item]));
    fact("guest ran before", model.after[item] >= 0 ? `${duration(model.after[item])} (${shape.cpl === 3 ? "user" : "kernel"})` : "");
    fact("work done by", shape.layer);
    fact("vCPU", shape.vcpu);
    fact("thread", shape.thread);
    fact("process", shape.task);
    fact("container", shape.container);
    fact("came by", shape.via);
    for (const [name, value] of shape.args) fact(name, value);
    fact("result", more.result);
    fact("data", more.data && (more.data.match(/../g) || []).join(" "));
    fact("at", shape.where);
    fact("CR3", shape.cr3);
    box.replaceChildren(element("h2", `Event ${(item + 1).toLocaleString("en")}: ${shape.kind}`), element("p", model.textOf(item), "what"), facts);
    if (more.code) box.append(element("pre", more.code));
  }

  // ---- totals

  totals(from, to) {
    const { layers, names } = this.model.totals(from, to), span = (to - from) * this.model.about.vcpus;
    const body = [...layers].filter(([, ns]) => ns > 0).map(([layer, ns]) => this.share(layer, ns, span, `hsl(${HUES[layer]} 52% 50%)`));
    fill(document.getElementById("layers"), ["", "", "time", "of what is shown"], body);
    fill(document.getElementById("names"), ["", "count", "time", "mean", "p50", "p99", "most"], names.slice(0, 200).map((entry) => this.name(entry)));
  }

  share(layer, ns, span, colour) {
    const row = element("tr"), bar = element("td", undefined, "bar"), fillBar = element("i");
    fillBar.style.cssText = `width:${Math.min(100 * ns / span, 100)}%;background:${colour}`;
    bar.append(fillBar);
    row.append(element("td", layer), bar, element("td", duration(ns)), element("td", `${(100 * ns / span).toFixed(1)} %`));
    return row;
  }

  name(entry) {
    const row = element("tr"), first = element("td"), swatch = element("span", "", "swatch");
    const times = Float64Array.from(entry.times).sort(), at = (part) => times[Math.max(Math.ceil(part * times.length) - 1, 0)];
    swatch.style.background = entry.colour;
    first.append(swatch, entry.title);
    first.title = entry.title;
    row.append(first, element("td", entry.count.toLocaleString("en")));
    for (const ns of [entry.sum, entry.times.reduce((a, b) => a + b, 0) / entry.count, at(0.5), at(0.99), at(1)])
      row.append(element("td", duration(ns)));
    row.addEventListener("click", () => document.dispatchEvent(new CustomEvent("searchfor", { detail: entry.title })));
    return row;
  }
}

function fill(table, heads, rows) {
  const head = element("thead"), line = element("tr"), body = element("tbody");
  line.append(...heads.map((text) => element("th", text)));
  head.append(line);
  body.append(...rows);
  table.replaceChildren(head, body);
}
