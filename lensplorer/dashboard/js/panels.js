// The panels: frames around figures. Open, close, drag, maximise; controls, badge, cost, export. Only those on screen are asked for.

function makePanels(page) {
  const region = make("div", { class: "panels", role: "region", "aria-label": "Panels", tabindex: "-1" });
  const tip = make("div", { class: "tip", role: "tooltip", hidden: true });
  const frames = new Map();
  let order = page.panelTable.filter((panel) => panel.open).map((panel) => panel.name);
  let shownNames = "";
  let pointed = null; // the panel under the pointer
  let dragged = null;

  // -- which are open, and which can be seen -------------------------------------------------------------------------------------

  const seen = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.dataset.panel) : seen.delete(entry.target.dataset.panel);
    tellShown();
  }, { root: region, rootMargin: "0px 0px 80px 0px" });

  function tellShown() {
    const names = order.filter((name) => seen.has(name));
    if (names.join() === shownNames || !page.listening()) return;
    shownNames = names.join();
    page.act("show_panels", { names });
  }

  function arrange(names, tell = true) {
    order = names.filter((name) => page.panelTable.some((panel) => panel.name === name));
    for (const name of order) if (!frames.has(name)) frames.set(name, makeFrame(page.panelTable.find((panel) => panel.name === name)));
    for (const [name, frame] of frames) {
      if (order.includes(name)) continue;
      watcher.unobserve(frame.root);
      seen.delete(name);
      frame.root.remove();
      frames.delete(name);
    }
    order.forEach((name, i) => {
      const { root } = frames.get(name);
      if (region.children[i] !== root) region.insertBefore(root, region.children[i] ?? null);
      watcher.observe(root);
    });
    if (tell) page.act("arrange", { names: order });
    tellShown();
  }

  const toggle = (name) => arrange(order.includes(name) ? order.filter((each) => each !== name) : [...order, name]);

  // -- one panel -----------------------------------------------------------------------------------------------------------------

  function makeFrame({ name, title, about, span, height }) {
    const heading = make("h2", { draggable: "true", title: `${about} Drag to move.` });
    const badge = makeBadge();
    const menu = make("div", { class: "menu", hidden: true, role: "menu" }, ...[
      ["Copy as Python", () => page.act("copy_python", { panel: name })],
      ["Figure as SVG", () => saveFigure(frame, "svg")],
      ["Figure as PNG", () => saveFigure(frame, "png")],
      ["Figure as HTML", () => page.act("export", { panel: name, format: "html" })],
      ["Data as CSV", () => page.act("export", { panel: name, format: "csv" })],
      ["Data as Parquet", () => page.act("export", { panel: name, format: "parquet" })],
    ].map(([text, run]) => make("button", { role: "menuitem", onclick: () => (closeMenu(), run()) }, text)));
    const more = make("button", { class: "icon", title: "Copy as Python, save figure or data", "aria-label": `${title}: copy and save`, "aria-haspopup": "menu", onclick: (event) => openMenu(event) }, icon("more"));
    const large = make("button", { class: "icon", title: "Maximise (shift + m)", "aria-label": `Maximise ${title}`, onclick: () => maximise(name) }, icon("maximise"));
    const close = make("button", { class: "icon", title: "Close the panel (v opens it again)", "aria-label": `Close ${title}`, onclick: () => toggle(name) }, icon("remove"));
    const controls = make("div", { class: "controls" });
    const body = make("div", { class: "body", style: height ? `height:${height}px` : "" });
    const note = make("div", { class: "note" });
    const line = make("div", { class: "progress", hidden: true });
    const root = make("section", { class: "card panel", "data-panel": name, "aria-label": title, style: `--span:${span}` },
      make("div", { class: "bar" }, heading, badge.root, make("span", { class: "grow" }), more, large, close, menu), controls, line, body, note);
    const frame = { name, root, body, note, badge, heading, controls, line, title, about, height, width: 0, tall: 0, controlsShown: "" };

    heading.addEventListener("dragstart", (event) => ((dragged = name), event.dataTransfer.setData("text/plain", name), root.classList.add("dragged")));
    heading.addEventListener("dragend", () => ((dragged = null), root.classList.remove("dragged")));
    root.addEventListener("dragover", (event) => dragged && event.preventDefault());
    root.addEventListener("drop", (event) => {
      event.preventDefault();
      if (!dragged || dragged === name) return;
      const without = order.filter((each) => each !== dragged);
      const to = without.indexOf(name) + (order.indexOf(dragged) < order.indexOf(name) ? 1 : 0);
      arrange([...without.slice(0, to), dragged, ...without.slice(to)]);
    });
    root.addEventListener("pointerenter", () => (pointed = name));
    body.addEventListener("pointermove", (event) => point(frame, event));
    body.addEventListener("pointerleave", () => unpoint());
    body.addEventListener("click", (event) => click(frame, event));
    function closeMenu() {
      menu.hidden = true;
    }
    function openMenu(event) {
      menu.hidden = !menu.hidden;
      if (menu.hidden) return;
      menu.querySelector("button").focus();
      const away = (other) => {
        if (other.composedPath().includes(root) && other.composedPath().includes(menu)) return;
        if (other.composedPath().includes(more)) return;
        closeMenu();
        window.removeEventListener("pointerdown", away, true);
      };
      window.addEventListener("pointerdown", away, true);
      event.stopPropagation();
    }
    menu.addEventListener("keydown", (event) => event.key === "Escape" && (closeMenu(), more.focus(), event.stopPropagation()));
    // The size is kept, since asking for it while drawing would lay the whole page out once for each panel.
    new ResizeObserver((entries) => {
      const { width, height: tall } = entries.at(-1).contentRect;
      if (!width) return;
      const differs = Math.abs(width - frame.width) > 3 || (root.classList.contains("maximised") && Math.abs(tall - frame.tall) > 3);
      (frame.width = width), (frame.tall = tall);
      if (differs && frame.part) drawBody(frame);
    }).observe(body);
    drawFrame(frame);
    return frame;
  }

  // -- drawing -------------------------------------------------------------------------------------------------------------------

  function drawFrame(frame) {
    const part = page[`panel.${frame.name}`];
    drawToken(frame.heading, part?.title ?? frame.title);
    frame.badge.draw(part?.badge);
    if (!part) {
      setText(frame.note, page.model.name ? "" : frame.about);
      frame.note.hidden = !frame.note.textContent;
      return;
    }
    drawControls(frame, part);
    frame.root.classList.toggle("stale", Boolean(page.strip.waiting)); // it shows another text
    const isMarked = part.figures?.some((figure) => figure.kind === "columns"); // they show the cursor's column
    if (frame.part === part && frame.theme === page.theme && (frame.at === page.at() || !isMarked || page.fresh)) return;
    frame.part = part;
    drawBody(frame);
  }

  function drawBody(frame) {
    const { part, body, note } = frame;
    frame.theme = page.theme;
    frame.at = page.at();
    const width = frame.width || (frame.width = (body.clientWidth || frame.root.clientWidth) - 16);
    const figures = part.figures ?? [];
    const tables = figures.filter((figure) => figure.kind === "table").length;
    const isLarge = frame.root.classList.contains("maximised");
    const each = isLarge ? (frame.tall - 8) / Math.max(1, figures.length - tables) : (frame.height || 260) / Math.max(1, figures.length);
    const scrolled = tables ? body.scrollTop : 0;
    figures.forEach((figure, i) => {
      const old = body.children[i];
      const height = isLarge ? Math.max(each, figure.height ?? 0) : figure.height ?? Math.max(each, figure.kind === "columns" ? 110 : 0);
      const made = figure.kind === "table" ? drawTable(page, figure) : drawFigure(page, figure, width, height, isLarge, old);
      made.figure = figure;
      if (made !== old) old ? old.replaceWith(made) : body.append(made);
    });
    while (body.children.length > figures.length) body.lastElementChild.remove();
    if (scrolled) body.scrollTop = scrolled;
    body.hidden = !figures.length;
    const text = part.error ?? part.empty ?? [part.cost ? `About ${formatSeconds(part.cost)} on this machine.` : "", part.note].filter(Boolean).join(" ");
    note.shown = null;
    drawToken(note, text ?? "");
    if (part.cost) note.append(" ", make("button", { class: "small main", onclick: () => page.act("run_panel", { panel: frame.name }) }, "Run ", make("kbd", {}, "r")));
    note.hidden = !text;
    note.classList.toggle("failed", Boolean(part.error));
    frame.root.dataset.state = part.error ? "failed" : part.cost ? "waiting" : figures.length ? "drawn" : "empty";
  }

  function drawControls(frame, part) {
    const state = JSON.stringify([part.controls, part.buttons]);
    if (frame.controlsShown === state) return;
    const active = frame.root.getRootNode().activeElement;
    const editing = active && frame.controls.contains(active) ? active.name : null;
    if (editing && frame.controls.querySelector(`[name="${editing}"]`)?.dataset.dirty) return;
    frame.controlsShown = state;
    frame.controls.replaceChildren(...(part.controls ?? []).map((control) => makeControl(frame.name, control)), ...(part.buttons ?? []).map(({ label: text, do: command, main, ...given }) =>
      make("button", { class: `small${main ? " main" : ""}`, "data-do": command, onclick: () => page.act(command, given) }, text)));
    frame.controls.hidden = !frame.controls.childElementCount;
    if (editing) frame.controls.querySelector(`[name="${editing}"]`)?.focus();
  }

  function makeControl(panel, control) {
    const send = (value) => page.act("set_control", { panel, name: control.name, value });
    let input;
    if (control.type === "flag") {
      input = make("input", { type: "checkbox", name: control.name, onchange: () => send(input.checked) });
      input.checked = control.value;
      return make("label", { class: "control flag", title: control.about || control.label }, input, control.label);
    }
    if (control.choices.length) {
      input = make("select", { name: control.name, onchange: () => (input.blur(), send(input.value)) }, ...control.choices.map((choice) => make("option", { value: choice }, choice)));
      input.value = control.value;
    } else {
      const text = control.type === "text";
      input = make("input", { type: text ? "text" : "number", step: "any", name: control.name, spellcheck: "false", class: text ? "mono" : "number", placeholder: text ? "…" : "" });
      input.value = control.value;
      input.addEventListener("input", () => (input.dataset.dirty = "1"));
      input.addEventListener("change", () => (delete input.dataset.dirty, send(input.value)));
      input.addEventListener("keydown", (event) => ["Enter", "Escape"].includes(event.key) && (input.blur(), event.stopPropagation()));
    }
    return make("label", { class: "control", title: control.about || control.label }, make("span", {}, control.label), input);
  }

  function draw() {
    const names = page.status.open;
    if (names && names.join() !== order.join() && page.status.acknowledged >= page.local.sent) arrange(names, false);
    for (const frame of frames.values()) drawFrame(frame);
    drawProgress();
  }

  function drawProgress() {
    const running = page.running;
    for (const frame of frames.values()) {
      const mine = running?.panel === frame.name;
      frame.line.hidden = !mine;
      frame.root.classList.toggle("working", mine);
      if (mine) fillProgress(frame.line, running, page);
    }
  }

  // -- pointing and clicking -----------------------------------------------------------------------------------------------------

  function cellOf(frame, event) {
    const hit = event.target.closest?.(".hit");
    if (!hit?.cellAt) return null;
    const root = hit.ownerSVGElement;
    const box = root.getBoundingClientRect();
    const cell = hit.cellAt(event.clientX - box.left, event.clientY - box.top);
    return cell && { ...cell, figure: root.figure };
  }

  function point(frame, event) {
    const cell = cellOf(frame, event);
    const marked = event.target.closest?.("[data-tip]");
    if (cell) {
      const { figure, row, column } = cell;
      const value = figure.values[row][column];
      const position = positionOf(figure, column);
      const lines = [`${figure.row} ${figure.rows[row]}`, `${figure.column === "position" ? `position ${position}` : figure.column} ${figure.columns[column]}`];
      const rows = figure.tops ? figure.tops[row][column].map(([token, p]) => [token, formatProbability(p)]) : [];
      showTip(lines, rows, value == null ? "" : formatValue(value, figure.unit), event);
      page.hover(figure.column === "position" ? position : null);
      page.overlay(figure.overlay ? coloursOf(figure, row) : null);
    } else if (marked) {
      const figure = marked.ownerSVGElement?.figure;
      const [first, ...rest] = marked.dataset.tip.split("\n");
      showTip(rest.slice(0, -1).length ? [first, ...rest.slice(0, -1)] : [first], [], rest.at(-1) ?? "", event);
      page.hover(marked.dataset.position != null ? Number(marked.dataset.position) : null);
      page.overlay(figure?.overlay ? coloursOf(figure, marked.dataset.row) : null);
    } else unpoint();
  }

  const positionOf = (figure, column) => (figure.positions ? figure.positions[column] : (figure.first ?? 0) + column);

  /** What the strip takes on while a row of a figure is pointed at: the row, what the figure has for it, or its one number per token. */
  function coloursOf(figure, row) {
    const from = figure.overlay?.values ? figure.overlay : figure;
    const values = new Array(page.strip.tokens.length).fill(null);
    (from.kind === "columns" ? from.values : from.values[row]).forEach((value, column) => (values[positionOf(from, column)] = value));
    return { values, low: from.low, high: from.high, quantity: from.quantity, unit: from.unit };
  }

  function unpoint() {
    tip.hidden = true;
    page.hover(null);
    page.overlay(null);
  }

  function showTip(lines, rows, value, event) {
    const table = rows.map(([token, p]) => {
      const name = make("th", { class: "mono" });
      drawToken(name, token);
      return make("tr", {}, name, make("td", { class: "number" }, p));
    });
    tip.replaceChildren(...lines.map((line, i) => {
      const place = make(i ? "p" : "b", { class: i ? "" : "mono" });
      drawToken(place, line);
      return place;
    }), value ? make("p", { class: "number strong" }, value) : "", table.length ? make("table", {}, ...table) : "");
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(innerWidth - tip.offsetWidth - 8, event.clientX + 14))}px`;
    tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight - 8 ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
  }

  function click(frame, event) {
    const cell = cellOf(frame, event);
    if (cell) {
      const { figure, row, column } = cell;
      if (figure.pick) {
        const { panel, show } = figure.pick;
        const isPattern = figure.row === "query"; // else a grid of heads
        if (!order.includes(panel)) toggle(panel);
        if (isPattern) page.act("put_cursor", { to: (figure.first ?? 0) + row });
        const at = isPattern ? [["source", positionOf(figure, column)]] : [["layer", row], ["head", column]];
        for (const [name, value] of [["show", show], ...at]) page.act("set_control", { panel, name, value });
      } else if (figure.column === "position") page.act("put_cursor", { to: positionOf(figure, column) });
      return;
    }
    const marked = event.target.closest?.("[data-position]");
    if (marked) page.act("put_cursor", { to: Number(marked.dataset.position) });
  }

  /** Numbers of the matrix for a generated token that is pointed at in the strip. */
  function rowFor(position) {
    const figure = page["panel.matrix"]?.figures?.[0];
    const row = figure?.row_positions?.indexOf(position) ?? -1;
    return row < 0 || !frames.has("matrix") ? null : coloursOf(figure, row);
  }

  /** A thin line at a position in every figure over the token axis. */
  function mark(position) {
    for (const frame of frames.values()) {
      for (const root of frame.body.children) {
        root.querySelector?.(".crosshair")?.remove();
        const figure = root.figure;
        if (position == null || figure?.kind !== "columns" || position < figure.first || position >= figure.first + figure.values.length) continue;
        const width = root.width.baseVal.value;
        const x = LEFT + (position - figure.first + 0.5) * ((width - LEFT - RIGHT) / roomFor(figure.values.length));
        root.append(svg("line", { class: "crosshair", x1: x, x2: x, y1: 6, y2: root.height.baseVal.value - 60, stroke: page.colours.muted, "stroke-dasharray": "3 3", "pointer-events": "none" }));
      }
    }
  }

  // -- maximise and save ---------------------------------------------------------------------------------------------------------

  function maximise(name = pointed ?? order[0]) {
    const frame = frames.get(name);
    if (!frame) return;
    const on = !frame.root.classList.contains("maximised");
    for (const each of frames.values()) each.root.classList.remove("maximised");
    frame.root.classList.toggle("maximised", on);
    region.classList.toggle("has-maximised", on);
    for (const each of frames.values()) each.part && drawBody(each);
  }

  /** The panel's figures as one SVG; tables are left to the data. */
  function figureOf(frame) {
    const shown = [...frame.body.children].filter((child) => child.tagName.toLowerCase() === "svg");
    if (!shown.length) return null;
    const width = Math.max(...shown.map((each) => each.width.baseVal.value));
    let y = 30;
    const root = svg("svg", { xmlns: SVG, width, style: `font:${FONT}` });
    root.append(drawn(label(frame.heading.textContent, 12, 20, { fill: page.colours.text, weight: 600 })));
    for (const each of shown) {
      const copy = each.cloneNode(true);
      copy.setAttribute("y", y);
      copy.querySelectorAll(".hit, .crosshair").forEach((node) => node.remove());
      root.append(copy);
      y += each.height.baseVal.value;
    }
    root.setAttribute("height", y + 4);
    root.setAttribute("viewBox", `0 0 ${width} ${y + 4}`);
    root.prepend(svg("rect", { width, height: y + 4, fill: page.colours.card }));
    return root;
  }

  async function saveFigure(frame, kind) {
    const root = figureOf(frame);
    if (!root) return page.say("This panel shows no figure now.", "error");
    const text = new XMLSerializer().serializeToString(root);
    const name = `lensplorer-${frame.name}.${kind}`;
    if (kind === "svg") return page.download(new Blob([text], { type: "image/svg+xml" }), name);
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const picture = document.createElement("canvas");
    picture.width = 2 * root.getAttribute("width");
    picture.height = 2 * root.getAttribute("height");
    picture.getContext("2d").drawImage(image, 0, 0, picture.width, picture.height);
    picture.toBlob((blob) => page.download(blob, name), "image/png");
  }

  arrange(page.status.open ?? order, false);
  return { region, tip, draw, drawProgress, toggle, arrange, maximise, mark, rowFor, tellShown, isOpen: (name) => order.includes(name), forget: () => (shownNames = "") };
}

function formatSeconds(seconds) {
  return seconds < 90 ? `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}
