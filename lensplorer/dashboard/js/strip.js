// The token strip: the text itself, coloured by the view, with its views and legend above it.

function makeStrip(page) {
  const tabs = make("div", { class: "tabs", role: "tablist", "aria-label": "Views" });
  const legend = make("div", { class: "legend" });
  const low = make("span", { class: "number" });
  const high = make("span", { class: "number" });
  const ramp = make("span", { class: "ramp" });
  const layer = make("span", { class: "layer number" });
  legend.append(layer, low, ramp, high);
  const tokens = make("div", { class: "tokens", role: "listbox", "aria-label": "Tokens of the prompt", tabindex: "0" });
  const note = make("div", { class: "note", role: "alert", hidden: true });
  const root = make("section", { class: "card strip", "aria-label": "Token strip" }, make("div", { class: "bar" }, tabs, legend), tokens, note);
  const tip = make("div", { class: "tip", role: "tooltip", hidden: true });
  const nodes = [];
  let shownViews = "";
  let ringed = null;
  let hovered = null;

  const positionOf = (event) => {
    const token = event.target.closest?.(".token");
    return token ? Number(token.dataset.position) : null;
  };
  tokens.addEventListener("click", (event) => {
    const position = positionOf(event);
    if (position != null) page.act("put_cursor", { to: position });
  });
  tokens.addEventListener("pointerover", (event) => showTip(positionOf(event)));
  tokens.addEventListener("pointerleave", () => showTip(null));

  function drawTabs() {
    const views = page.status.views ?? [];
    const names = views.map((view) => view.name).join();
    if (names !== shownViews) {
      shownViews = names;
      tabs.replaceChildren(...views.map((view, index) => make("button", {
        role: "tab", "data-view": view.name, title: `${view.label} (${index + 1})`, onclick: () => page.act("go_to_view", { index }),
      }, view.short)));
    }
    for (const tab of tabs.children) tab.setAttribute("aria-selected", String(tab.dataset.view === page.strip.view));
  }

  function drawLegend() {
    const part = page.strip;
    legend.hidden = !part.quantity || part.low == null;
    if (legend.hidden) return;
    const scale = page.scales[part.quantity][page.theme].fill;
    ramp.style.background = `linear-gradient(to right, ${scale.filter((_, i) => i % 4 === 0).concat(scale.at(-1)).join()})`;
    setText(low, formatValue(part.low, part.unit === "probability" ? part.unit : ""));
    setText(high, formatValue(part.high, part.unit));
    setText(layer, part.by_layer ? `layer ${part.layer}` : "");
    legend.title = part.title + (part.by_layer ? ". n and b change the layer." : "");
  }

  function node(position) {
    if (!nodes[position]) {
      const token = make("span", { class: "token", role: "option", "data-position": position });
      nodes[position] = { token, wrap: make("span", {}, token) };
    }
    return nodes[position];
  }

  function drawTokens() {
    const part = page.strip;
    const texts = part.tokens ?? [];
    const special = new Set(part.special ?? []);
    for (let i = 0; i < texts.length; i++) {
      const { token, wrap } = node(i);
      drawToken(token, texts[i]);
      if (token.dataset.id !== String(part.ids[i])) token.dataset.id = part.ids[i];
      const colour = colourOf(page, part, part.values?.[i]);
      const style = colour ? `background:${colour.fill};color:${colour.ink}` : "";
      if (token.styled !== style) token.setAttribute("style", (token.styled = style));
      const classes = `token${special.has(i) ? " special" : ""}${i >= part.n_given ? " completion" : ""}${i === part.n_given && i > 0 ? " first" : ""}`;
      if (token.classed !== classes) token.className = token.classed = classes;
      const breaks = texts[i].endsWith("⏎");
      if (breaks !== (wrap.childElementCount === 2)) breaks ? wrap.append(make("br")) : wrap.lastElementChild.remove();
      if (!wrap.parentNode) tokens.append(wrap);
    }
    for (const extra of nodes.splice(texts.length)) extra.wrap.remove();
    ringed = null;
  }

  /** The ring on the cursor's token; without a cursor, a quiet mark on the last one, where the analyses look. */
  function drawCursor() {
    const n = nodes.length;
    const at = page.local.cursor ?? n - 1;
    const kind = page.local.cursor == null ? "here" : "cursor";
    if (ringed) ringed.classList.remove("cursor", "here"), ringed.setAttribute("aria-selected", "false");
    ringed = nodes[Math.min(at, n - 1)]?.token ?? null;
    if (!ringed) return;
    ringed.classList.add(kind);
    ringed.classed = null;
    ringed.setAttribute("aria-selected", "true");
    const top = ringed.offsetTop - tokens.offsetTop;
    if (top < tokens.scrollTop) tokens.scrollTop = top - 4;
    else if (top + ringed.offsetHeight > tokens.scrollTop + tokens.clientHeight) tokens.scrollTop = top + ringed.offsetHeight - tokens.clientHeight + 4;
  }

  function showTip(position) {
    hovered = position;
    const part = page.strip;
    const token = position == null ? null : nodes[position]?.token;
    tip.hidden = !token || !part.tokens;
    if (tip.hidden) return;
    const name = make("b", { class: "mono" });
    drawToken(name, part.tokens[position]);
    const rows = [["position", `${position} of ${part.tokens.length - 1}`], ["id", String(part.ids[position])]];
    const own = part.values && part.scores.every((score) => score.label !== part.view);
    if (own) rows.push([part.label.toLowerCase(), formatValue(part.values[position], part.unit)]);
    for (const score of part.scores) rows.push([score.label, formatValue(score.values[position], score.unit)]);
    const missing = part.scores[0].values[position] == null;
    tip.replaceChildren(
      name,
      make("table", {}, ...rows.map(([label, value]) => make("tr", label === part.view || (own && label === part.label.toLowerCase()) ? { class: "main" } : {}, make("th", {}, label), make("td", { class: "number" }, value)))),
      missing ? make("p", {}, "No prediction stands before the first token.") : "",
    );
    const box = token.getBoundingClientRect();
    const width = tip.offsetWidth;
    tip.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, box.left))}px`;
    const below = box.bottom + 6;
    tip.style.top = `${below + tip.offsetHeight > innerHeight - 8 ? box.top - tip.offsetHeight - 6 : below}px`;
  }

  function draw() {
    drawTabs();
    drawLegend();
    drawTokens();
    drawCursor();
    const { error, loading } = page.model;
    const empty = { "no prompt": "The prompt is empty: press i to write or paste one.", "no model": error ? `${error} Press m to name another model.` : `Loading ${loading} …` }[page.strip.empty];
    const failed = page.strip.error ?? (page.strip.empty === "no model" ? error : "");
    setText(note, page.strip.error ?? empty ?? "");
    note.hidden = !note.textContent;
    note.classList.toggle("failed", Boolean(failed));
    tokens.hidden = Boolean(page.strip.empty);
    if (hovered != null) showTip(hovered);
  }
  return { root, tip, tokens, draw, drawCursor };
}
