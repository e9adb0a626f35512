"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const methods = data.methods;
  const shown = new Set(methods.map((_, i) => i));
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const number = new Intl.NumberFormat("en");
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };
  const significant = (value, digits) => String(Number(value.toPrecision(digits)));

  /* How a value of each kind is written; the same words as in the figures. */
  const formats = {
    text: (v) => v,
    int: (v) => number.format(v),
    real: (v) => (v === 0 ? "0" : Math.abs(v) < 1e-4 || Math.abs(v) >= 1e7 ? v.toExponential(5) : significant(v, 7)),
    time: (v) => (v < 0.9995 ? significant(v * 1000, 3) + " ms" : significant(v, 4) + " s"),
    gap: (v) => (v <= 1e-6 ? "0" : v >= 10 ? number.format(Math.round(v + 1)) + "×" : significant(v * 100, 3) + " %"),
    method: (v) => methods[v].label,
    tag: (v) => v,
  };
  const numeric = (kind) => ["int", "real", "time", "gap"].includes(kind);

  function cell(column, value) {
    const td = make(column.head ? "th" : "td", column.head ? { scope: "row" } : {});
    if (numeric(column.kind)) td.className = "num";
    if (column.head) td.classList.add("first");
    if (column.wide) td.classList.add("wide");
    if (value === null) {
      td.append(make("span", { class: "zero" }, column.kind === "text" ? "" : "–"));
      return td;
    }
    const text = formats[column.kind](value);
    if (column.kind === "method") {
      const line = make("span", { class: "line d" + methods[value].dash, "aria-hidden": "true" });
      line.style.setProperty("--series", `var(--c${methods[value].slot})`);
      td.append(make("span", { class: "name" }, line, text));
    } else if (column.kind === "tag") {
      td.append(make("span", { class: "tag " + (/^[a-z]+$/.test(value) ? value : "") }, text));
    } else if (column.kind === "gap" && value <= 1e-6) {
      td.append(make("span", { class: "zero" }, "0"));
    } else {
      td.append(text);
      if (column.heat) {
        td.classList.add("heat");
        td.style.setProperty("--heat", String(Math.round(Math.min(Math.max(Math.log10(value) + 5, 0.3), 5.5) * 6)));
      }
    }
    return td;
  }

  class Browser {
    constructor(root, spec, noun) {
      Object.assign(this, { root, columns: spec.columns, rows: spec.rows, noun, sort: null, down: false, page: 0, size: 50 });
      this.method = this.columns.findIndex((c) => c.kind === "method");
      this.text = this.rows.map((row) =>
        row.map((v, i) => (v !== null && !numeric(this.columns[i].kind) ? formats[this.columns[i].kind](v) : "")).join("\n").toLowerCase());
      this.build();
      this.apply();
    }

    build() {
      const controls = make("div", { class: "controls", role: "search" });
      this.search = make("input", { type: "search", placeholder: "name, family, reason …", autocomplete: "off", spellcheck: "false", oninput: () => this.restart() });
      controls.append(make("label", {}, "Filter", this.search));
      this.selects = [];
      this.columns.forEach((column, i) => {
        if (!column.filter) return;
        const values = [...new Set(this.rows.map((row) => row[i]))].filter((v) => v !== null);
        if (column.kind !== "method") values.sort(collator.compare); else values.sort((a, b) => a - b);
        const select = make("select", { "data-column": column.key, onchange: () => this.restart() }, make("option", { value: "" }, "all"));
        for (const value of values) select.append(make("option", { value: String(value) }, formats[column.kind](value)));
        this.selects.push([i, select]);
        controls.append(make("label", {}, column.label, select));
      });
      controls.append(make("button", { type: "button", class: "plain", onclick: () => this.clear() }, "Clear"));
      this.count = make("p", { class: "count", role: "status", "aria-live": "polite" });
      this.head = make("tr");
      this.heads = this.columns.map((column, i) => {
        const th = make("th", { scope: "col", "aria-sort": "none", title: column.title },
          make("button", { type: "button", onclick: () => this.order(i) }, column.label));
        if (numeric(column.kind)) th.className = "num";
        if (column.head) th.classList.add("first");
        this.head.append(th);
        return th;
      });
      this.body = make("tbody");
      const table = make("table", {}, make("caption", { class: "skip" }, this.noun), make("thead", {}, this.head), this.body);
      this.scroll = make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": this.noun }, table);
      this.back = make("button", { type: "button", class: "plain", onclick: () => this.turn(-1) }, "Previous");
      this.next = make("button", { type: "button", class: "plain", onclick: () => this.turn(1) }, "Next");
      this.where = make("span");
      const size = make("select", { "aria-label": "Rows on a page", onchange: (e) => { this.size = Number(e.target.value); this.page = 0; this.draw(); } });
      for (const n of [50, 200, 1000]) size.append(make("option", { value: String(n) }, `${n} rows`));
      this.pager = make("div", { class: "pager" }, this.back, this.where, this.next, size);
      this.root.append(controls, this.count, this.scroll, this.pager);
    }

    restart() { this.page = 0; this.apply(); }

    clear() {
      this.search.value = "";
      for (const [, select] of this.selects) select.value = "";
      this.restart();
    }

    order(i) {
      this.down = this.sort === i ? !this.down : false;
      this.sort = i;
      this.heads.forEach((th, j) => th.setAttribute("aria-sort", j === i ? (this.down ? "descending" : "ascending") : "none"));
      this.page = 0;
      this.apply();
    }

    turn(by) {
      this.page += by;
      this.draw();
      this.scroll.scrollIntoView({ block: "nearest" });
    }

    apply() {
      const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = this.selects.filter(([, s]) => s.value !== "").map(([i, s]) => [i, s.value]);
      this.found = [];
      for (let r = 0; r < this.rows.length; r++) {
        const row = this.rows[r];
        if (this.method >= 0 && !shown.has(row[this.method])) continue;
        if (wanted.every(([i, value]) => String(row[i]) === value) && words.every((w) => this.text[r].includes(w))) this.found.push(r);
      }
      if (this.sort !== null) {
        const i = this.sort, sign = this.down ? -1 : 1, rows = this.rows, kind = this.columns[i].kind;
        const compare = numeric(kind) ? (a, b) => a - b : kind === "method" ? (a, b) => collator.compare(methods[a].label, methods[b].label) : collator.compare;
        this.found.sort((a, b) => {
          const x = rows[a][i], y = rows[b][i];
          if (x === null || y === null) return (x === null) - (y === null) || a - b; /* what is not known comes last */
          return sign * compare(x, y) || a - b;
        });
      }
      this.draw();
    }

    draw() {
      const pages = Math.max(1, Math.ceil(this.found.length / this.size));
      this.page = Math.min(Math.max(this.page, 0), pages - 1);
      const from = this.page * this.size, to = Math.min(from + this.size, this.found.length);
      const visible = this.columns.map((c) => c.series === undefined || shown.has(c.series));
      this.heads.forEach((th, i) => { th.hidden = !visible[i]; });
      const rows = this.found.slice(from, to).map((r) =>
        make("tr", {}, ...this.columns.flatMap((column, i) => (visible[i] ? [cell(column, this.rows[r][i])] : []))));
      if (!rows.length) rows.push(make("tr", {}, make("td", { class: "empty", colspan: String(this.columns.length) }, "Nothing matches; clear the filters or show more methods.")));
      this.body.replaceChildren(...rows);
      const all = this.rows.length, n = this.found.length;
      this.count.textContent = (n === all ? `${number.format(all)} ${this.noun}` : `${number.format(n)} of ${number.format(all)} ${this.noun}`) +
        (n > to - from ? `, rows ${number.format(from + 1)} to ${number.format(to)}` : "");
      this.back.disabled = this.page === 0;
      this.next.disabled = this.page >= pages - 1;
      this.where.textContent = `page ${this.page + 1} of ${pages}`;
      this.pager.hidden = n <= 50;
    }
  }

  /* A table that is in the page already: sorted in place by what its cells say in data-value. */
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    const key = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
    heads.forEach((th, i) => {
      const button = make("button", { type: "button" }, ...th.childNodes);
      th.replaceChildren(button);
      th.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const down = th.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", other === th ? (down ? "descending" : "ascending") : "none"));
        const sign = down ? -1 : 1, asNumbers = th.classList.contains("num");
        const rows = [...body.rows].sort((a, b) => {
          const x = key(a, i), y = key(b, i);
          if (x === "" || y === "") return (x === "") - (y === "");
          return sign * (asNumbers ? x - y : collator.compare(x, y));
        });
        body.append(...rows);
      });
    });
  }

  const names = { pairs: "pairs of an instance and a keep", runs: "runs" };
  const browsers = [...document.querySelectorAll("[data-table]")].map((root) => new Browser(root, data[root.dataset.table], names[root.dataset.table]));
  document.querySelectorAll("table.sortable").forEach(sortable);

  const boxes = [...document.querySelectorAll("#methods input")];
  function choose() {
    shown.clear();
    boxes.forEach((box) => { if (box.checked) shown.add(Number(box.value)); });
    document.querySelectorAll("[data-series]").forEach((node) => node.classList.toggle("off", !shown.has(Number(node.dataset.series))));
    browsers.forEach((browser) => browser.restart());
  }
  boxes.forEach((box) => box.addEventListener("change", choose));
  if (boxes.some((box) => !box.checked)) choose(); /* the browser may remember a choice over a reload */

  const theme = document.getElementById("theme"), order = ["system", "light", "dark"];
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const now = order[(order.indexOf(document.documentElement.dataset.theme || "system") + 1) % 3];
    document.documentElement.dataset.theme = now;
    theme.textContent = "Theme: " + now;
  });
})();
