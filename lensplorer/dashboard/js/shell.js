// The page: its regions, and what moves at once in the browser while the server is still at it.
//
// Every command gets a number. The cursor and the selection move here first; once the server has acknowledged the last number sent, what it
// says counts. Until then its older word is not allowed to move them back.

export function render({ model, el }) {
  const { commands, scales, parts: first } = JSON.parse(model.setup);
  const page = {
    commands, scales, ...first,
    theme: storedTheme() ?? first.status.theme,
    local: { cursor: null, selected: 0, sent: 0 },
    act, buttons,
  };
  const waiting = []; // commands given before the server could hear them
  let listening = false;
  const byName = new Map(page.commands.map((command) => [command.name, command]));

  function buttons(place) {
    const group = make("div", { class: `buttons of-${place}`, role: "group" });
    for (const command of page.commands.filter((each) => each.place === place)) {
      const hint = command.keys.length ? `${command.label} (${command.keys.map(keyLabel).join(", ")})` : command.label;
      const drawn = command.name === "pop" ? "backspace" : command.icon;
      group.append(make("button", { class: "icon", title: hint, "aria-label": hint, "data-command": command.name, onclick: () => act(command.name) }, icon(drawn)));
    }
    return group;
  }

  // -- regions -------------------------------------------------------------------------------------------------------------------

  const strip = makeStrip(page);
  const candidates = makeCandidates(page);
  const lens = makeLens(page);
  const rail = makeRail(page);
  const status = makeStatus(page);
  page.help = makeHelp(page);
  page.editor = makeEditor(page);
  page.chooser = makeModelDialog(page);
  page.dialogs = [page.help, page.editor, page.chooser];
  const panels = make("section", { class: "card panel" });
  const title = make("h2", {});
  const plot = make("div", { class: "plot" });
  const plotNote = make("div", { class: "note" });
  const badge = makeBadge();
  panels.append(make("div", { class: "bar" }, title, badge.root), plot, plotNote);
  for (const child of model.get_child("panels")) plot.append(child);
  const shell = make("div", { class: "lensplorer" },
    make("header", {}, make("h1", { class: "brand" }, "lensplorer"), status.chip, make("span", { class: "grow" }), buttons("header")),
    rail.root,
    make("main", {}, strip.root, make("div", { class: "columns" }, candidates.root, make("div", { class: "panels" }, panels, lens.root))),
    status.root, strip.tip, lens.tip, ...page.dialogs.map((dialog) => dialog.root));
  el.append(shell);

  // -- commands ------------------------------------------------------------------------------------------------------------------

  const inBrowser = {
    help: () => page.help.open(),
    edit: () => page.editor.open(),
    find: () => candidates.search(),
    choose_model: () => page.chooser.open(),
    toggle_theme: () => setTheme(page.theme === "dark" ? "light" : "dark"),
  };

  /** Do a command; returns its number, or null when it stays in the browser. */
  function act(name, given = {}) {
    if (inBrowser[name]) return inBrowser[name](), null;
    const fresh = page.local.sent <= page.status.acknowledged;
    if (name === "append" && fresh && given.token_id == null && page.candidates.ids?.length) {
      given = { token_id: page.candidates.ids[page.local.selected] }; // what is on screen; ahead of the screen, the row counts
    }
    const message = { do: name, seq: ++page.local.sent, ...given };
    shell.dataset.sent = page.local.sent;
    if (listening) model.send_msg(message);
    else waiting.push(message);
    guess(name, given);
    status.working();
    return message.seq;
  }

  /** What a command does to the cursor and the selection, shown before the server says so. */
  function guess(name, given) {
    const { local } = page;
    const last = (page.strip.tokens?.length ?? 0) - 1;
    const to = { put_cursor: given.to, cursor_next: (local.cursor ?? last) + 1, cursor_previous: (local.cursor ?? last) - 1, cursor_first: 0, cursor_last: last }[name];
    if (to != null && last >= 0) local.cursor = Math.max(0, Math.min(last, to));
    if (name === "toggle_cursor") local.cursor = local.cursor == null ? last : null;
    if (to != null || name === "toggle_cursor") (local.selected = 0), strip.drawCursor();
    const rows = page.candidates.ids?.length ?? 0;
    const row = { select: given.index, select_next: local.selected + 1, select_previous: local.selected - 1, append: 0 }[name];
    if (row != null && rows) local.selected = Math.max(0, Math.min(rows - 1, row));
    if (row != null || to != null) candidates.drawSelection();
    status.draw();
  }

  // -- what the server says ------------------------------------------------------------------------------------------------------

  /** Draw the parts that have changed. */
  function draw(parts) {
    if (page.status.acknowledged >= page.local.sent) {
      page.local.cursor = page.status.cursor;
      page.local.selected = page.candidates.selected ?? 0;
    }
    if (parts.has("strip") || parts.has("status")) strip.draw();
    if (parts.has("candidates") || parts.has("status")) candidates.draw();
    if (parts.has("lens")) lens.draw();
    if (parts.has("prompts")) rail.draw();
    badge.draw(page.strip.badge);
    drawToken(title, page.strip.title ?? page.strip.label ?? "Values of the tokens");
    const empty = page.strip.empty === "no prompt" ? "A plot of the tokens' values appears here once there is a prompt: press i to write one."
      : page.strip.empty ? "A plot of the tokens' values appears here once a model is loaded." : page.strip.error ?? (page.strip.quantity ? "" : "The plain prompt. Press e for the first view of it.");
    setText(plotNote, empty);
    plotNote.hidden = !empty;
    plotNote.classList.toggle("failed", Boolean(page.strip.error));
    plot.classList.toggle("away", Boolean(empty) || !page.strip.quantity);
    for (const dialog of page.dialogs) dialog.draw?.();
    status.draw();
    shell.dataset.acknowledged = page.status.acknowledged;
    shell.dataset.tokens = page.status.n;
    shell.dataset.ready = String(Boolean(listening && page.model.name));
  }

  model.on("msg:custom", (text) => {
    const parts = JSON.parse(text);
    Object.assign(page, parts);
    draw(new Set(Object.keys(parts)));
  });

  /** Once the server hears: ask for the newest state, and send what was typed before. */
  function start() {
    if (listening || !model.ready) return;
    listening = true;
    model.send_msg({ do: "hello" });
    for (const message of waiting.splice(0)) model.send_msg(message);
    act("set_theme", { theme: page.theme });
  }

  // -- theme ---------------------------------------------------------------------------------------------------------------------

  function setTheme(theme) {
    page.theme = theme;
    try {
      localStorage.setItem("lensplorer-theme", theme);
    } catch { /* a browser that keeps nothing still gets the theme */ }
    shell.dataset.theme = document.documentElement.dataset.theme = theme;
    strip.draw();
    candidates.draw();
    lens.draw();
    act("set_theme", { theme });
  }
  shell.dataset.theme = document.documentElement.dataset.theme = page.theme;

  const silence = listenForKeys(page);
  model.on("remove", silence);
  draw(new Set(Object.keys(first)));
  model.on("ready", start);
  start();
}

function storedTheme() {
  try {
    const theme = localStorage.getItem("lensplorer-theme");
    return ["dark", "light"].includes(theme) ? theme : null;
  } catch {
    return null; // a browser that keeps nothing
  }
}
