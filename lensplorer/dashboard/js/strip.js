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
  const progress = make("div", { class: "progress", hidden: true });
  const goOn = make("div", { class: "go-on", hidden: true });
  const root = make("section", { class: "card strip", "aria-label": "Token strip" }, make("div", { class: "bar" }, tabs, progress, legend), tokens, goOn, note);
  const tip = make("div", { class: "tip", role: "tooltip", hidden: true });
  const nodes = [];
  let shownViews = "";
  let ringed = null, scrolling = null;
  let hovered = null;

  const positionOf = (event) => {
    const token = event.target.closest?.(".token");
    return token ? Number(token.dataset.position) : null;
  };
  // A click puts the cursor; a drag selects tokens, whose sums the status line shows and which interventions take as their positions.
  let start = null;
  tokens.addEventListener("pointerdown", (event) => {
    start = event.button === 0 ? positionOf(event) : null;
    if (start != null) select(null);
  });
  tokens.addEventListener("pointermove", (event) => {
    const position = positionOf(event);
    if (start != null && event.buttons === 1 && position != null && (position !== start || page.selection)) select([Math.min(start, position), Math.max(start, position)]), event.preventDefault();
  });
  tokens.addEventListener("click", (event) => {
    const position = positionOf(event);
    if (position != null && !page.selection) page.act("put_cursor", { to: position });
  });
  tokens.addEventListener("dragstart", (event) => event.preventDefault());
  tokens.addEventListener("pointerover", (event) => {
    const position = positionOf(event);
    showTip(position);
    page.hover(position);
    page.overlay(position == null ? null : page.panels.rowFor(position));
  });
  tokens.addEventListener("pointerleave", () => (showTip(null), page.hover(null), page.overlay(null)));

  function select(range) {
    page.selection = range;
    nodes.forEach(({ token }, i) => token.classList.toggle("picked", Boolean(range) && i >= range[0] && i <= range[1]));
    page.drawStatus?.();
  }

  function drawTabs() {
    const views = page.status.views ?? [];
    const names = views.map((view) => view.name).join();
    if (names !== shownViews) {
      shownViews = names;
      tabs.replaceChildren(...views.map((view, index) => make("button", {
        role: "tab", "data-view": view.name, title: `${view.label} (${index < 9 ? index + 1 : "e"})`, onclick: () => page.act("go_to_view", { index }),
      }, view.short)));
    }
    for (const tab of tabs.children) tab.setAttribute("aria-selected", String(tab.dataset.view === page.status.view));
  }

  /** The numbers on the tokens: the view's, or those of what is pointed at. */
  const shown = () => page.overlaid ?? page.colouring ?? {};

  function drawLegend() {
    const part = shown();
    legend.classList.toggle("blank", !part.quantity || part.low == null);
    if (!part.quantity || part.low == null) return;
    const scale = page.scales[part.quantity][page.theme].fill;
    ramp.style.background = `linear-gradient(to right, ${scale.filter((_, i) => i % 4 === 0).concat(scale.at(-1)).join()})`;
    setText(low, formatValue(part.low, part.unit === "probability" ? part.unit : ""));
    setText(high, formatValue(part.high, part.unit));
    setText(layer, part.by_layer ? `layer ${part.layer}` : "");
    legend.title = (part.title ?? "") + (part.by_layer ? ". n and b change the layer." : "");
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
      const classes = `token${special.has(i) ? " special" : ""}${i >= part.n_given ? " completion" : ""}${i === part.n_given && i > 0 ? " first" : ""}`;
      if (token.classed !== classes) (token.className = token.classed = classes), page.selection && i >= page.selection[0] && i <= page.selection[1] && token.classList.add("picked");
      const breaks = texts[i].endsWith("⏎");
      if (breaks !== (wrap.childElementCount === 2)) breaks ? wrap.append(make("br")) : wrap.lastElementChild.remove();
      if (!wrap.parentNode) tokens.append(wrap);
    }
    for (const extra of nodes.splice(texts.length)) extra.wrap.remove();
    ringed = null;
    drawColours();
  }

  function drawColours() {
    const part = shown();
    for (let i = 0; i < nodes.length; i++) {
      const colour = page.strip.off ? null : colourOf(page, part, part.values?.[i]);
      const style = colour ? `background:${colour.fill};color:${colour.ink}` : "";
      const { token } = nodes[i];
      if (token.styled !== style) token.setAttribute("style", (token.styled = style));
    }
    drawLegend();
  }

  /** A position is pointed at elsewhere. */
  function point(position) {
    tokens.querySelector(".pointed")?.classList.remove("pointed");
    const token = position == null ? null : nodes[position]?.token;
    if (token) token.classList.add("pointed"), (token.classed = null);
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
    scrolling ??= requestAnimationFrame(scrollToCursor);
  }

  /** Once a frame, when all is drawn: asking for places in between would lay the page out each time. */
  function scrollToCursor() {
    scrolling = null;
    if (!ringed) return;
    const top = ringed.offsetTop; // tokens is what it is placed in
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
    const view = page.colouring ?? {};
    const own = view.values && part.scores.every((score) => score.label !== view.view);
    if (own) rows.push([view.label.toLowerCase(), formatValue(view.values[position], view.unit)]);
    for (const score of part.scores) rows.push([score.label, formatValue(score.values[position], score.unit)]);
    const missing = part.scores.length && part.scores[0].values[position] == null;
    tip.replaceChildren(
      name,
      make("table", {}, ...rows.map(([label, value]) => make("tr", label === view.view || (own && label === view.label.toLowerCase()) ? { class: "main" } : {}, make("th", {}, label), make("td", { class: "number" }, value)))),
      missing ? make("p", {}, "No prediction stands before the first token.") : "",
    );
    const box = token.getBoundingClientRect();
    const width = tip.offsetWidth;
    tip.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, box.left))}px`;
    const below = box.bottom + 6;
    tip.style.top = `${below + tip.offsetHeight > innerHeight - 8 ? box.top - tip.offsetHeight - 6 : below}px`;
  }

  /** A text that is still to be run: how far it is, or how to go on where its run was stopped. */
  function drawProgress() {
    const waiting = page.strip.waiting;
    progress.hidden = !waiting || waiting.held;
    legend.hidden = !progress.hidden;
    goOn.hidden = !waiting?.held;
    if (!waiting) return;
    const running = page.running?.panel === "the text" ? page.running : { seconds: 0, expected: waiting.seconds, runs: 0 };
    if (!waiting.held) return fillProgress(progress, running, page);
    goOn.replaceChildren(`Stopped: ${waiting.tokens.toLocaleString("en")} of ${waiting.of.toLocaleString("en")} tokens are still to be run, about ${formatSeconds(waiting.seconds)}. `,
      make("button", { class: "small", onclick: () => page.act("run_panel") }, "Go on ", make("kbd", {}, "r")));
  }

  function draw() {
    drawProgress();
    tokens.classList.toggle("stale", Boolean(page.colouring?.view && page.colouring.view !== page.status.view));
    drawTabs();
    drawTokens();
    drawCursor();
    const { error, loading } = page.model;
    const empty = { "no prompt": "The prompt is empty: press i to write or paste one.", "no model": error ? `${error} Press m to name another model.` : `Loading ${loading} …` }[page.strip.empty];
    const failed = page.strip.off ? "" : page.strip.error ?? page.colouring?.error ?? (page.strip.empty === "no model" ? error : "");
    const refused = page.strip.off ? "The model is off: edit freely, press o to switch it on again." : (page.strip.error ?? page.colouring?.error);
    setText(note, refused ?? empty ?? "");
    note.hidden = !note.textContent;
    note.classList.toggle("failed", Boolean(failed));
    tokens.hidden = Boolean(page.strip.empty);
    if (hovered != null) showTip(hovered);
  }
  return { root, tip, tokens, draw, drawCursor, drawColours, drawProgress, point };
}
