// The logit lens: what each layer would say next, layer × position, around the position looked at.

const LENS_CELL = 76; // px: eight characters

function makeLens(page) {
  const title = make("h2", {}, "Logit lens: what each layer would say next");
  const badge = makeBadge();
  const table = make("table", { class: "lens" });
  const note = make("div", { class: "note", hidden: true });
  const root = make("section", { class: "card lens-card", "aria-label": "Logit lens" }, make("div", { class: "bar" }, title, badge.root), make("div", { class: "grid" }, table), note);
  const tip = make("div", { class: "tip", role: "tooltip", hidden: true });
  let drawn = null;
  let shown = "";

  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    const top = cell && page.lens.cells[cell.dataset.layer]?.[cell.dataset.column];
    tip.hidden = !top;
    if (!top) return;
    const rows = top.tokens.map((token, i) => {
      const name = make("th", { class: "mono" });
      drawToken(name, token);
      return make("tr", {}, name, make("td", { class: "number" }, formatProbability(top.probabilities[i])));
    });
    const layer = Number(cell.dataset.layer);
    const place = make("p", {}, `${layer === 0 ? "embedding" : `after block ${layer - 1}`}, position ${page.lens.first + Number(cell.dataset.column)}`);
    tip.replaceChildren(make("table", {}, ...rows), place);
    const box = cell.getBoundingClientRect();
    tip.style.left = `${Math.min(innerWidth - tip.offsetWidth - 8, box.left)}px`;
    tip.style.top = `${box.top - tip.offsetHeight - 6 < 8 ? box.bottom + 6 : box.top - tip.offsetHeight - 6}px`;
  });
  table.addEventListener("pointerleave", () => (tip.hidden = true));
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-column]");
    if (cell) page.act("put_cursor", { to: page.lens.first + Number(cell.dataset.column) });
  });

  /** Columns that fit, the one looked at among them. */
  function range() {
    const n = page.lens.tokens.length;
    const fit = Math.max(1, Math.min(n, Math.floor((root.clientWidth - 72) / LENS_CELL)));
    const at = page.lens.position - page.lens.first;
    const from = Math.max(0, Math.min(n - fit, at - Math.floor(0.75 * fit)));
    return [from, from + fit];
  }

  function draw() {
    const part = page.lens;
    const empty = part.empty ? "What each layer would say appears here once there is a prompt." : "";
    setText(note, part.error ?? empty);
    note.hidden = !note.textContent;
    note.classList.toggle("failed", Boolean(part.error));
    table.hidden = !part.cells;
    badge.draw(part.badge);
    if (!part.cells) return;
    const [from, to] = range();
    const state = `${from} ${to} ${page.theme}`;
    if (drawn === part && shown === state) return;
    drawn = part;
    shown = state;
    const columns = [...Array(to - from).keys()].map((i) => i + from);
    const classOf = (column) => (part.first + column === part.position ? "at" : "");
    const heads = columns.map((column) => {
      const head = make("th", { scope: "col", class: `mono ${classOf(column)}`, "data-column": column });
      drawToken(head, part.tokens[column]);
      return head;
    });
    const rows = part.cells.map((cells, layer) => {
      const drawnCells = columns.map((column) => {
        const { tokens, probabilities } = cells[column];
        const colour = colourOf(page, { quantity: "probability", low: 0, high: 1 }, probabilities[0]);
        const cell = make("td", { class: `mono ${classOf(column)}`, "data-layer": layer, "data-column": column, style: `background:${colour.fill};color:${colour.ink}` });
        drawToken(cell, tokens[0]);
        return cell;
      });
      return make("tr", {}, make("th", { scope: "row", class: "number" }, layer === 0 ? "embed" : `layer ${layer}`), ...drawnCells);
    });
    table.replaceChildren(make("tr", {}, make("th"), ...heads), ...rows.reverse());
  }

  new ResizeObserver(() => page.lens.cells && draw()).observe(root);
  return { root, tip, draw };
}
