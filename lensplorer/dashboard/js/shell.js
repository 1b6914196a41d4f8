// The page: its regions, and what moves at once in the browser while the server is still at it.
//
// Every command gets a number. The cursor and the selection move here first; once the server has acknowledged the last number sent, what it
// says counts. Until then its older word is not allowed to move them back.

export function render({ model, el }) {
  const { commands, scales, themes, panels: panelTable, parts: first } = JSON.parse(model.setup);
  const page = {
    commands, scales, panelTable, ...first,
    theme: storedTheme() ?? first.status.theme,
    local: { cursor: null, selected: 0, sent: 0 },
    running: null,
    act, buttons, download, say, hover, overlay,
    listening: () => listening,
    attributing: () => page.panels.isOpen("attribution") || page.status.view === "attribution",
    at: () => Math.min(page.local.cursor ?? Infinity, (page.strip.tokens?.length ?? 0) - 1),
    get colours() { return themes[page.theme]; },
  };
  const waiting = []; // commands given before the server could hear them
  let listening = false;

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
  const panels = makePanels(page);
  const rail = makeRail(page);
  const status = makeStatus(page);
  page.panels = panels;
  page.help = makeHelp(page);
  page.editor = makeEditor(page);
  page.chooser = makeModelDialog(page);
  page.saeDialog = makeSaeDialog(page);
  page.panelDialog = makePanelDialog(page);
  page.chat = makeChatDialog(page);
  page.opener = makeOpenDialog(page);
  page.tour = makeTour(page);
  page.dialogs = [page.help, page.editor, page.chooser, page.saeDialog, page.panelDialog, page.chat, page.opener, page.tour];
  const lost = make("div", { class: "lost", role: "alert", hidden: true }, "The connection to the server is lost; it is being tried again. ",
    make("button", { class: "small", onclick: () => location.reload() }, "Reload: what is here is resumed"));
  const shell = make("div", { class: "lensplorer" },
    make("header", {}, make("h1", { class: "brand" }, "lensplorer"), status.chip, status.saeChip, make("span", { class: "grow" }), buttons("header")),
    rail.root,
    make("main", {}, strip.root, make("div", { class: "columns" }, candidates.root, panels.region)),
    status.root, lost, strip.tip, panels.tip, ...page.dialogs.map((dialog) => dialog.root));
  el.append(shell);
  // A button that was pressed with the pointer gives the keyboard back: the next space is a sampled step, not the button again.
  shell.addEventListener("click", (event) => event.detail > 0 && event.target.closest?.("button, summary")?.closest(".dialog, .menu") == null && event.target.closest?.("button, summary")?.blur());

  // -- commands ------------------------------------------------------------------------------------------------------------------

  const inBrowser = {
    help: () => page.help.open(),
    edit: () => page.editor.open(),
    find: () => candidates.search(),
    choose_model: () => page.chooser.open(),
    choose_sae: () => page.saeDialog.open(),
    choose_panels: () => page.panelDialog.open(),
    chat: () => page.chat.open(),
    open: () => page.opener.open(),
    maximise: () => panels.maximise(),
    toggle_rail: () => rail.toggle(),
    tour: () => page.tour.start(),
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

  /** A position is pointed at somewhere: every figure over the token axis and the strip show it. */
  function hover(position) {
    if (page.hovered === position) return;
    page.hovered = position;
    panels.mark(position);
    strip.point(position);
  }

  /** Other numbers on the strip for as long as something is pointed at; null puts the view's back. */
  function overlay(part) {
    if (!part && !page.overlaid) return;
    page.overlaid = part;
    strip.drawColours();
  }

  // -- what the server says ------------------------------------------------------------------------------------------------------

  /** Draw the parts that have changed. */
  function draw(parts) {
    if (page.status.acknowledged >= page.local.sent) {
      page.local.cursor = page.status.cursor;
      page.local.selected = page.candidates.selected ?? 0;
    }
    if (["strip", "colouring", "status"].some((name) => parts.has(name))) strip.draw();
    if (parts.has("candidates") || parts.has("status")) candidates.draw();
    page.fresh = parts.has("strip"); // another text: the panels' new pictures are on their way
    if (parts.has("running")) panels.drawProgress(), strip.drawProgress();
    if ([...parts].some((name) => name.startsWith("panel.") || name === "status")) panels.draw();
    if (parts.has("prompts") || parts.has("settings")) rail.draw();
    for (const dialog of page.dialogs) dialog.draw?.();
    status.draw();
    if (parts.has("status")) take(page.status.download);
    if (parts.has("tab")) keepTabKey(page.tab);
    shell.dataset.acknowledged = page.status.acknowledged;
    shell.dataset.tokens = page.status.n;
    shell.dataset.waiting = String(Boolean(page.strip.waiting && !page.strip.waiting.held)); // the text is still to be run
    shell.dataset.ready = String(Boolean(listening && page.model.name));
    if (page.settled) (shell.dataset.settled = page.settled.seq), (shell.dataset.panelsTook = page.settled.milliseconds);
    shell.classList.toggle("off", Boolean(page.strip.off));
    if (listening && page.model.name) panels.tellShown(), page.tour.offer();
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
    model.send_msg({ do: "hello", tab: tabKey() });
    for (const message of waiting.splice(0)) model.send_msg(message);
    act("set_theme", { theme: page.theme });
    panels.tellShown();
  }

  // -- what leaves the page ------------------------------------------------------------------------------------------------------

  let taken = null;
  async function take(given) {
    if (!given || given === taken || JSON.stringify(given) === taken) return;
    taken = JSON.stringify(given);
    if (given.data) {
      const bytes = Uint8Array.from(atob(given.data), (letter) => letter.charCodeAt(0));
      return download(new Blob([bytes], { type: given.type }), given.name);
    }
    const text = given.clipboard ?? location.origin + location.pathname + given.link;
    shell.dataset.copied = text;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      download(new Blob([text], { type: "text/plain" }), given.link ? "lensplorer-link.txt" : "lensplorer.py"); // no clipboard here: a file instead
    }
  }

  function download(blob, name) {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    shell.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function say(text, kind = "info") {
    page.status = { ...page.status, message: { kind, text } };
    status.draw();
  }

  // -- connection ----------------------------------------------------------------------------------------------------------------

  for (const doc of window.Bokeh?.documents ?? []) {
    doc.on_event("connection_lost", () => (lost.hidden = false));
    doc.on_event("client_reconnected", () => {
      lost.hidden = true;
      model.send_msg({ do: "hello", tab: tabKey() });
    });
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
    panels.draw();
    act("set_theme", { theme });
  }
  shell.dataset.theme = document.documentElement.dataset.theme = page.theme;

  const silenceKeys = listenForKeys(page);
  model.on("remove", silenceKeys);
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

/** The key of this tab, under which the server keeps what it shows: it outlives a reload. */
function tabKey() {
  try {
    const known = sessionStorage.getItem("lensplorer-tab");
    if (/^[0-9a-f]{32}$/.test(known ?? "")) return known;
    const fresh = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    keepTabKey(fresh);
    return fresh;
  } catch {
    return null;
  }
}

function keepTabKey(key) {
  sessionStorage.setItem("lensplorer-tab", key);
}
