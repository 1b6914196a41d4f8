// The candidates: what the model would say next after the position looked at.

const ROW = 24, HEAD = 25; // px: a row, and the headings that stay

function makeCandidates(page) {
  const after = make("span", { class: "mono quoted" });
  const search = make("input", {
    type: "search", placeholder: "search  /", "aria-label": "Search candidates", spellcheck: "false", autocomplete: "off", maxlength: "100",
  });
  const heading = make("h2", {}, "Next after ", after);
  const head = make("div", { class: "bar" }, heading, search, page.buttons("candidates"));
  const body = make("tbody");
  const headings = make("tr", {}, ...[
    ["", "rank", ""], ["token", "", ""], ["", "share", "p_base as a ghost behind p_final; with p, the candidate's way through the layers"],
    ["p", "number", "Probability: the model's own, p_base"], ["p_final", "number final", "Probability that the next token is drawn with, under the decoding settings"],
    ["logit", "number", "Logit"], ["z", "number z", "Logit in standard deviations from the vocabulary's mean"],
  ].map(([name, kind, about]) => make("th", { class: kind, scope: "col", title: about }, name)));
  const columns = make("colgroup", {}, ...["rank", "name", "share", "probability", "final", "logit", "z"].map((name) => make("col", { class: name })));
  const table = make("table", { class: "candidates" }, columns, make("thead", {}, headings), body);
  const scroll = make("div", { class: "scroll", tabindex: "-1" }, table);
  const note = make("div", { class: "note", role: "status", hidden: true });
  const foot = make("div", { class: "foot muted number" });
  const root = make("section", { class: "card candidates-card", "aria-label": "Candidates" }, head, scroll, note, foot);
  const rows = [];
  let marked = null;
  const view = { from: 0, tall: 400 }; // what of the list can be seen
  scroll.addEventListener("scroll", () => (view.from = scroll.scrollTop), { passive: true });
  new ResizeObserver((entries) => (view.tall = entries.at(-1).contentRect.height || view.tall)).observe(scroll); // hidden, it has none

  search.addEventListener("input", () => page.act("search", { text: search.value }));
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && search.value) (search.value = ""), page.act("search", { text: "" });
    if (["Escape", "Enter"].includes(event.key)) search.blur(), event.stopPropagation();
    if (event.key === "ArrowDown") search.blur(), page.act("select_next"), event.preventDefault();
  });
  // A candidate that is pointed at for a moment is what attributions are about, while the attribution is on the page.
  let aiming = null;
  body.addEventListener("pointerover", (event) => {
    const index = event.target.closest("tr")?.dataset.index;
    clearTimeout(aiming);
    if (index != null && page.attributing()) aiming = setTimeout(() => page.act("aim", { token_id: page.candidates.ids[Number(index)] }), 220);
  });
  body.addEventListener("pointerleave", () => {
    clearTimeout(aiming);
    if (page.status.aim != null) page.act("aim", { token_id: null });
  });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (!row) return;
    const index = Number(row.dataset.index);
    if (index === page.local.selected) page.act("append", { token_id: page.candidates.ids[index] });
    else page.act("select", { index });
  });

  function row(index) {
    if (!rows[index]) {
      const fill = make("span", { class: "fill" });
      const ghost = make("span", { class: "ghost" });
      const path = svg("path", { fill: "none", "stroke-width": 1.5 });
      const spark = svg("svg", { class: "spark", viewBox: "0 0 46 16", preserveAspectRatio: "none" }, path);
      const cells = {
        rank: make("td", { class: "rank number" }), token: make("td", { class: "mono name" }), bar: make("td", { class: "track" }, make("span", { class: "gauge" }, ghost, fill), spark),
        probability: make("td", { class: "number" }), final: make("td", { class: "number final" }), logit: make("td", { class: "number" }), z: make("td", { class: "number z" }),
      };
      rows[index] = { tr: make("tr", { "data-index": index, title: "click to select, again to append" }, ...Object.values(cells)), fill, ghost, path, spark, ...cells };
      rows[index].text = make("span", {});
      cells.token.append(rows[index].text);
    }
    return rows[index];
  }

  function draw() {
    const part = page.candidates;
    heading.style.visibility = part.after == null ? "hidden" : "";
    drawToken(after, part.after ?? "");
    const n = part.ids?.length ?? 0;
    root.classList.toggle("no-z", !part.z_scores);
    root.classList.toggle("no-final", !part.p_final);
    setText(headings.children[2], part.layers ? { probability: "layers", logit: "layers", correlation: "corr." }[part.layer_display] : "");
    const part2 = { quantity: "probability", low: 0, high: 1 };
    for (let i = 0; i < n; i++) {
      const { tr, fill, ghost, path, spark, bar, rank, text, probability, final, logit, z } = row(i);
      setText(rank, String(part.ranks[i]));
      drawToken(text, part.tokens[i]);
      const drawn = part.p_final?.[i] ?? part.probabilities[i];
      fill.style.width = `${(100 * drawn).toFixed(2)}%`;
      fill.style.background = colourOf(page, part2, drawn).fill;
      ghost.style.width = `${(100 * part.probabilities[i]).toFixed(2)}%`;
      const layers = part.layers?.[i];
      bar.classList.toggle("layered", Boolean(layers));
      if (layers) drawSpark(path, layers, part);
      const isCut = part.kept?.[i] === false;
      setText(final, part.p_final ? (part.valid?.[i] === false ? "invalid" : isCut ? "cut" : formatProbability(part.p_final[i])) : "");
      final.title = part.valid?.[i] === false ? "The constraint does not admit it here" : isCut ? "Cut by top-k, top-p or min-p" : "";
      tr.classList.toggle("cut", isCut || part.valid?.[i] === false);
      setText(probability, formatProbability(part.probabilities[i]));
      setText(logit, part.logits[i].toFixed(2).replace("-", "−"));
      setText(z, part.z_scores ? part.z_scores[i].toFixed(2).replace("-", "−") : "");
      tr.classList.toggle("following", part.ids[i] === part.following);
      if (!tr.parentNode) body.append(tr);
    }
    for (const extra of rows.splice(n)) extra.tr.remove();
    const waiting = part.waiting?.held ? "The run of the text was stopped: press r to go on." : part.waiting ? "The text is being run: its candidates come when that is done." : "";
    const empty = waiting ? waiting : part.empty === "no prompt" ? "Candidates appear here once there is a prompt: press i to write one." : part.empty ? "Candidates appear here once a model is loaded." : "";
    const none = part.ids && n === 0 ? `No token of the vocabulary contains “${part.search}”.` : "";
    setText(note, part.error ?? (empty || none));
    note.classList.toggle("failed", Boolean(part.error));
    note.hidden = !note.textContent;
    scroll.hidden = !n;
    setText(foot, n ? `${n} of ${part.d_vocab.toLocaleString("en")} tokens, ${formatProbability(part.total)} of the probability` : "");
    if (search.value !== part.search && root.getRootNode().activeElement !== search) search.value = part.search ?? "";
    marked = null;
    drawSelection();
  }

  /** A candidate's probability, logit or correlation from the embedding to the last layer. */
  function drawSpark(path, values, part) {
    const known = part.layers.flat().filter((value) => value != null);
    const low = part.layer_display === "logit" ? Math.min(...known) : part.layer_display === "correlation" ? -1 : 0;
    const high = part.layer_display === "logit" ? Math.max(...known) : 1;
    path.setAttribute("d", values.map((value, layer) => `${layer ? "L" : "M"}${((45 * layer) / (values.length - 1)).toFixed(1)} ${(15 - (14 * ((value ?? low) - low)) / (high - low || 1)).toFixed(1)}`).join(""));
    path.setAttribute("stroke", page.colours.text);
    path.parentNode.setAttribute("aria-label", `${part.layer_display} by layer: ${values.map((value) => formatNumber(value)).join(", ")}`);
  }

  function drawSelection() {
    marked?.classList.remove("selected"), marked?.removeAttribute("aria-selected");
    marked = rows[page.local.selected]?.tr ?? null;
    for (const { tr } of rows) tr.classList.toggle("selected", tr === marked);
    if (!marked) return;
    marked.setAttribute("aria-selected", "true");
    const top = page.local.selected * ROW; // reckoned, not asked: asking would lay out the page
    if (top < view.from) scroll.scrollTop = top;
    else if (top + ROW > view.from + view.tall - HEAD) scroll.scrollTop = top + ROW + HEAD - view.tall;
  }

  return { root, draw, drawSelection, search: () => search.focus() };
}
