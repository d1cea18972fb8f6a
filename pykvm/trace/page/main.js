/* Puts the page together, and keeps what is seen in its address: #from=…&to=…&event=…&search=… */
document.addEventListener("DOMContentLoaded", async () => {
  const json = (id) => { const found = document.getElementById(id); return found ? JSON.parse(found.textContent) : null; };
  const about = json("about"), end = json("end"), matches = document.getElementById("matches");
  document.getElementById("image").textContent = about.image;
  const blocks = [...document.querySelectorAll("script[type='application/x-pykvm-events']")];
  const model = await Model.load(about, end, blocks, (part) => { matches.textContent = `${Math.round(100 * part)} %`; });
  matches.textContent = "";
  facts(about, end, model);
  new Viewer(model).start();
});

function facts(about, end, model) {
  const box = document.getElementById("facts");
  const fact = (name, value, isBad) => {
    const pair = element("div", undefined, isBad ? "bad" : "");
    pair.append(element("dt", name), element("dd", value));
    box.append(pair);
  };
  fact("ended by", end ? end.reason : "cut short", !end || end.is_abnormal);
  if (end && end.wall_ns) fact("wall time", duration(end.wall_ns));
  fact("vCPUs", String(about.vcpus));
  fact("events", model.count.toLocaleString("en"));
  if (end && end.dropped) fact("dropped", end.dropped.toLocaleString("en"), true);
  if (about.kvm) fact("KVM", about.kvm);
  fact("started", new Date(about.start_unix_ns / 1e6).toISOString().replace("T", " ").slice(0, 19) + " UTC");
}

class Viewer {
  constructor(model) {
    this.model = model;
    this.matches = null;
    this.timeline = new Timeline(model, { onSelect: (item) => this.select(item), onView: () => this.viewed() });
    this.panels = new Panels(model, (item) => this.select(item));
    this.search = document.getElementById("search");
  }

  start() {
    this.kinds();
    this.buttons();
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("searchfor", (event) => { this.search.value = event.detail; this.lookFor(event.detail); });
    this.search.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.lookFor(this.search.value), 120);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.timeline.draw());
    this.restore();
    this.timeline.draw();
    this.viewed();
    document.body.dataset.ready = "yes";
  }

  // ---- what is seen

  select(item) {
    this.timeline.select(item);
    this.panels.show(item);
    this.remember();
  }

  viewed() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => {
      this.panels.totals(Math.max(this.timeline.from, this.model.from), Math.min(this.timeline.to, this.model.to));
      this.remember();
    }, 90);
  }

  lookFor(query) {
    const found = this.model.find(query);
    this.matches = found;
    this.timeline.found = this.panels.found = found && found.length ? new Set(found) : null;
    document.getElementById("matches").textContent = found ? `${found.length.toLocaleString("en")} found` : "";
    this.timeline.draw();
    this.panels.lines();
    this.remember();
  }

  /* From match to match, or from event to event where nothing is searched for. */
  step(by, among = this.matches) {
    const shown = (item) => this.model.isShown(item), now = this.timeline.selected;
    const list = among ? among.filter(shown) : null, count = list ? list.length : this.panels.shown;
    if (!count) return;
    const item = (place) => list ? list[place] : this.panels.item(place);
    let place = by > 0 ? 0 : count - 1;
    if (now >= 0) {
      const next = list ? list.findIndex((i) => i >= now) : this.panels.place(now), at = next < 0 ? count : next;
      place = item(at) === now ? at + by : by > 0 ? at : at - 1;
    }
    this.select(item((place + count) % count));
  }

  // ---- controls

  kinds() {
    const box = document.getElementById("kinds");
    for (const [kind, count] of this.model.kinds) {
      const button = element("button", kind);
      button.append(element("b", count.toLocaleString("en")));
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        const hide = !this.model.hidden.has(kind);
        if (hide) this.model.hidden.add(kind); else this.model.hidden.delete(kind);
        button.setAttribute("aria-pressed", String(!hide));
        this.timeline.density = null;
        this.timeline.draw();
        this.panels.refresh();
      });
      box.append(button);
    }
  }

  buttons() {
    const actions = {
      in: () => this.timeline.zoom(0.6), out: () => this.timeline.zoom(1 / 0.6), fit: () => this.timeline.fit(),
      focus: () => this.timeline.focus(this.timeline.selected), next: () => this.step(1), previous: () => this.step(-1),
      help: () => document.getElementById("keys").showModal(),
    };
    for (const [id, action] of Object.entries(actions)) document.getElementById(id).addEventListener("click", action);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === this.search) {
      if (event.key === "Escape") { this.search.value = ""; this.lookFor(""); this.search.blur(); }
      else if (event.key === "Enter") this.step(event.shiftKey ? -1 : 1);
      return;
    }
    const timeline = this.timeline, actions = {
      w: () => timeline.zoom(0.7), "+": () => timeline.zoom(0.7), "=": () => timeline.zoom(0.7),
      s: () => timeline.zoom(1 / 0.7), "-": () => timeline.zoom(1 / 0.7),
      a: () => timeline.move(-0.15), d: () => timeline.move(0.15),
      ArrowLeft: () => timeline.move(-0.15), ArrowRight: () => timeline.move(0.15),
      ArrowUp: () => this.step(-1, null), ArrowDown: () => this.step(1, null),
      f: () => timeline.focus(timeline.selected), 0: () => timeline.fit(),
      n: () => this.step(1), N: () => this.step(-1),
      "/": () => this.search.focus(), "?": () => document.getElementById("keys").showModal(),
      Escape: () => { this.search.value = ""; this.lookFor(""); this.select(-1); },
    };
    if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
  }

  // ---- the address

  remember() {
    const { from, to, selected } = this.timeline, parts = [`from=${Math.round(from)}`, `to=${Math.round(to)}`];
    if (selected >= 0) parts.push(`event=${selected}`);
    if (this.search.value) parts.push(`search=${encodeURIComponent(this.search.value)}`);
    history.replaceState(null, "", `#${parts.join("&")}`);
  }

  restore() {
    const given = new URLSearchParams(location.hash.slice(1)), number = (name) => Number(given.get(name));
    if (given.has("from") && number("to") > number("from")) this.timeline.view(number("from"), number("to"));
    if (given.get("search")) { this.search.value = given.get("search"); this.lookFor(this.search.value); }
    if (given.has("event") && number("event") < this.model.count) this.select(number("event"));
  }
}
