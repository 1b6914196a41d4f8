// What opens over the page: the help sheet, the editor of the prompt, and the choice of a model.

/** A dialog that keeps the focus inside, closes on Escape and on a click beside it, and gives the focus back. */
function makeDialog(label, ...children) {
  const box = make("div", { class: "dialog", role: "dialog", "aria-modal": "true", "aria-label": label, tabindex: "-1" }, ...children);
  const root = make("div", { class: "veil", hidden: true }, box);
  let before = null;
  root.addEventListener("pointerdown", (event) => event.target === root && dialog.close());
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") dialog.close(), event.stopPropagation();
    if (event.key !== "Tab") return;
    const stops = [...box.querySelectorAll("button, textarea, input, [tabindex='0']")].filter((stop) => !stop.hidden && !stop.disabled);
    const edge = event.shiftKey ? stops[0] : stops.at(-1);
    if (root.getRootNode().activeElement === edge) (event.shiftKey ? stops.at(-1) : stops[0]).focus(), event.preventDefault();
  });
  const dialog = {
    root,
    box,
    onclose: () => {},
    get isOpen() { return !root.hidden; },
    open(focus) {
      before = root.getRootNode().activeElement;
      root.hidden = false;
      (focus ?? box).focus();
    },
    close() {
      if (root.hidden) return;
      root.getRootNode().activeElement?.blur(); // now, not at the next frame: the next key is a command
      root.hidden = true;
      before?.focus?.();
      dialog.onclose();
    },
  };
  return dialog;
}

/** The keys, from the table of commands: each line can also be clicked. */
function makeHelp(page) {
  const groups = new Map();
  for (const command of page.commands) {
    if (!command.group) continue;
    groups.set(command.group, [...(groups.get(command.group) ?? []), command]);
  }
  const keys = (command) => {
    const shown = command.keys.length > 3 ? [command.keys[0], command.keys.at(-1)] : command.keys;
    return make("span", { class: "keys" }, ...shown.flatMap((key, i) => [i && command.keys.length > 3 ? "–" : "", make("kbd", {}, keyLabel(key))]));
  };
  const section = ([name, commands]) => make("section", {}, make("h3", {}, name), ...commands.map((command) => make("button", {
    onclick: () => (dialog.close(), page.act(command.name, command.name === "go_to_view" ? { index: 0 } : {})),
  }, make("span", {}, command.label), keys(command))));
  const close = make("button", { class: "plain", onclick: () => dialog.close() }, "close", make("kbd", {}, "esc"));
  const dialog = makeDialog("Keys", make("div", { class: "bar" }, make("h1", {}, "Keys"), close), make("div", { class: "sheet" }, ...[...groups].map(section)));
  dialog.box.classList.add("help");
  return dialog;
}

/** The editor of the prompt. What is refused stays in it, with the reason. */
function makeEditor(page) {
  const text = make("textarea", { spellcheck: "false", rows: "8", "aria-label": "Prompt", placeholder: "Write or paste a prompt" });
  const error = make("p", { class: "failed", role: "alert" });
  const cut = make("button", { class: "plain", hidden: true, onclick: () => submit(true) }, "Keep the end");
  const take = make("button", { class: "main", onclick: () => submit(false) }, "Take this prompt", make("kbd", {}, "ctrl + enter"));
  const close = make("button", { class: "plain", onclick: () => dialog.close() }, "Cancel", make("kbd", {}, "esc"));
  const dialog = makeDialog("Prompt", make("h1", {}, "Prompt"), text, error, make("div", { class: "row" }, take, cut, make("span", { class: "grow" }), close));
  let awaited = null;

  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(false), event.preventDefault(), event.stopPropagation();
  });

  function submit(truncate) {
    awaited = page.act("set_prompt", { text: text.value, truncate });
  }
  dialog.onclose = () => {
    awaited = null;
    if (page.status.editor) page.act("forget_editor");
  };
  const open = dialog.open;
  dialog.open = (given) => {
    text.value = given ?? page.status.text ?? "";
    setText(error, "");
    cut.hidden = true;
    open(text);
    text.select();
  };
  /** The server's answer: a refusal is shown (also one of the first prompt, which nobody typed here), an acceptance closes. */
  dialog.draw = () => {
    const refused = page.status.editor;
    if (refused) {
      if (!dialog.isOpen) dialog.open(refused.text);
      setText(error, refused.error);
      cut.hidden = !refused.can_truncate;
      if (awaited != null && page.status.acknowledged >= awaited) awaited = null;
    } else if (awaited != null && page.status.acknowledged >= awaited) {
      awaited = null;
      dialog.close();
    }
  };
  return dialog;
}

/** The choice of a model: any name that load_model takes. */
function makeModelDialog(page) {
  const name = make("input", { type: "text", spellcheck: "false", autocomplete: "off", "aria-label": "Model", placeholder: "storyworld, gpt2, Qwen/Qwen2.5-0.5B, ./my_model" });
  const facts = make("dl", { class: "facts number" });
  const error = make("p", { class: "failed", role: "alert" });
  const load = make("button", { class: "main", onclick: () => submit() }, "Load", make("kbd", {}, "enter"));
  const close = make("button", { class: "plain", onclick: () => dialog.close() }, "Close", make("kbd", {}, "esc"));
  const dialog = makeDialog("Model", make("h1", {}, "Model"), facts, name, error, make("div", { class: "row" }, load, make("span", { class: "grow" }), close));
  let asked = false;

  name.addEventListener("keydown", (event) => {
    if (event.key === "Enter") submit(), event.preventDefault(), event.stopPropagation();
  });
  function submit() {
    if (!name.value.trim()) return setText(error, "Name a model: built in, on the hub, or a folder.");
    asked = true;
    page.act("load_model", { model: name.value });
  }
  const open = dialog.open;
  dialog.open = () => {
    asked = false;
    name.value = page.model.name ?? "";
    dialog.draw();
    open(name);
    name.select();
  };
  dialog.draw = () => {
    const model = page.model;
    const rows = model.name ? [
      ["model", model.name], ["architecture", model.architecture], ["device, dtype", `${model.device}, ${model.dtype}`],
      ["backend", model.backend + (model.reason ? `: ${model.reason}` : "")],
      ["difference to Hugging Face", model.difference == null ? "not measured" : formatNumber(model.difference)],
      ["layers, context, vocabulary", `${model.n_layers}, ${model.n_ctx.toLocaleString("en")}, ${model.d_vocab.toLocaleString("en")}`],
    ] : [];
    facts.replaceChildren(...rows.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));
    setText(error, model.error || (model.loading ? `Loading ${model.loading} …` : ""));
    error.classList.toggle("failed", Boolean(model.error));
    load.disabled = Boolean(model.loading);
    if (asked && !model.loading && !model.error && page.status.acknowledged >= page.local.sent) (asked = false), dialog.close();
  };
  return dialog;
}

/** Which panels are open: each with what it shows. */
function makePanelDialog(page) {
  const list = make("div", { class: "choices" });
  const close = make("button", { class: "plain", onclick: () => dialog.close() }, "close", make("kbd", {}, "esc"));
  let drawn = "";
  const dialog = makeDialog("Panels", make("div", { class: "bar" }, make("h1", {}, "Panels"), close), make("p", { class: "muted" }, "Drag a panel by its title to move it. Only what is on screen is computed."), list);
  dialog.draw = () => {
    if (!dialog.isOpen) return;
    const state = page.panelTable.map((panel) => page.panels.isOpen(panel.name)).join();
    if (state === drawn) return;
    drawn = state;
    list.replaceChildren(...page.panelTable.map((panel) => {
      const box = make("input", { type: "checkbox", value: panel.name, onchange: () => page.panels.toggle(panel.name) });
      box.checked = page.panels.isOpen(panel.name);
      return make("label", {}, box, make("b", {}, panel.title), make("span", { class: "muted" }, panel.about));
    }));
  };
  const open = dialog.open;
  dialog.open = () => (open(), dialog.draw(), list.querySelector("input")?.focus());
  return dialog;
}

/** The SAEs: those loaded, and a search over the registry, what fits the model first. */
function makeSaeDialog(page) {
  const search = make("input", { type: "text", spellcheck: "false", autocomplete: "off", "aria-label": "Search SAEs", placeholder: "search 13,857 SAEs: gpt2-small res-jb blocks.8" });
  const loaded = make("div", { class: "choices" });
  const found = make("div", { class: "found" });
  const said = make("p", { role: "status" });
  const close = make("button", { class: "plain", onclick: () => dialog.close() }, "close", make("kbd", {}, "esc"));
  const dialog = makeDialog("SAEs", make("div", { class: "bar" }, make("h1", {}, "SAEs and transcoders"), close), loaded, search, said, found);
  dialog.box.classList.add("help");
  let waiting = null;
  let asked = null;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => page.act("search_saes", { text: (asked = search.value) }), 250);
  });
  search.addEventListener("keydown", (event) => event.key === "Enter" && (clearTimeout(waiting), page.act("search_saes", { text: (asked = search.value) }), event.stopPropagation()));
  const open = dialog.open;
  dialog.open = () => {
    open(search);
    if (page.model.saes?.searched == null && page.model.name) page.act("search_saes", { text: (asked = "") });
    dialog.draw();
  };
  dialog.draw = () => {
    if (!dialog.isOpen) return;
    const saes = page.model.saes ?? { loaded: [], loading: [], found: [] };
    loaded.replaceChildren(...saes.loaded.map((name) => {
      const pick = make("input", { type: "radio", name: "sae", onchange: () => page.act("use_sae", { name }) });
      pick.checked = name === saes.chosen;
      return make("label", {}, pick, make("b", { class: "mono" }, name), make("button", { class: "small", onclick: () => page.act("take_off_sae", { name }) }, "take off"));
    }), ...saes.loading.map((name) => make("label", {}, make("span", { class: "dot near" }), make("span", { class: "mono" }, name), make("span", { class: "muted" }, "loading …"))));
    setText(said, saes.error || (asked != null && saes.searched !== asked ? "Searching …" : saes.searched != null && !saes.found.length ? `No SAE matches “${saes.searched}”.` : ""));
    said.classList.toggle("failed", Boolean(saes.error));
    const rows = saes.found.map((row) => make("tr", {},
      make("td", {}, make("button", { class: "small", title: row.fits === "no" ? "It is of another model: loading it says what does not fit" : "Load it", onclick: () => page.act("load_sae", { release: row.release, sae_id: row.sae_id }) }, "load")),
      make("td", { class: "mono" }, row.release), make("td", { class: "mono" }, row.sae_id), make("td", {}, row.model), make("td", { class: "number" }, row.width == null ? "" : row.width.toLocaleString("en")),
      make("td", { class: "number" }, row.l0 == null ? "" : String(row.l0)), make("td", { class: `fits-${row.fits}` }, { yes: "fits", no: "another model", unknown: "unknown" }[row.fits])));
    found.replaceChildren(rows.length ? make("table", { class: "data" }, make("thead", {}, make("tr", {}, ...["", "release", "id", "model", "width", "L0", "this model"].map((name) => make("th", {}, name)))), make("tbody", {}, ...rows)) : "");
  };
  return dialog;
}

/** A chat: the model's own template makes the prompt, and the exact tokens stand in the strip. */
function makeChatDialog(page) {
  const system = make("textarea", { rows: "2", spellcheck: "false", "aria-label": "System prompt", placeholder: "System (may be empty)" });
  const user = make("textarea", { rows: "5", spellcheck: "false", "aria-label": "User prompt", placeholder: "User" });
  const error = make("p", { class: "failed", role: "alert" });
  const take = make("button", { class: "main", onclick: () => submit() }, "Take this chat", make("kbd", {}, "ctrl + enter"));
  const close = make("button", { class: "plain", onclick: () => dialog.close() }, "Cancel", make("kbd", {}, "esc"));
  const dialog = makeDialog("Chat", make("h1", {}, "Chat"), make("p", { class: "muted" }, "Put through the model's own template; the strip shows the exact tokens, special ones too."), system, user, error,
    make("div", { class: "row" }, take, make("span", { class: "grow" }), close));
  let awaited = null;
  for (const box of [system, user]) box.addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && (submit(), event.preventDefault(), event.stopPropagation()));
  function submit() {
    awaited = page.act("set_chat", { system: system.value, user: user.value });
  }
  const open = dialog.open;
  dialog.open = () => (setText(error, ""), open(user));
  dialog.draw = () => {
    if (awaited == null || page.status.acknowledged < awaited) return;
    awaited = null;
    if (page.status.message?.kind === "error") setText(error, page.status.message.text);
    else dialog.close();
  };
  return dialog;
}

/** The saved sessions and autosaves, newest first. */
function makeOpenDialog(page) {
  const list = make("div", { class: "found" });
  const close = make("button", { class: "plain", onclick: () => dialog.close() }, "close", make("kbd", {}, "esc"));
  const dialog = makeDialog("Saved sessions", make("div", { class: "bar" }, make("h1", {}, "Saved sessions"), close), list);
  let asked = 0;
  const open = dialog.open;
  dialog.open = () => {
    asked = page.act("list_sessions");
    open();
    dialog.draw();
  };
  dialog.draw = () => {
    if (!dialog.isOpen) return;
    const rows = (page.status.saved ?? []).map((row) => make("tr", {}, make("td", {}, make("button", { class: "small", onclick: () => (page.act("open_session", { kind: row.kind, name: row.name }), dialog.close()) }, "open")),
      make("td", { class: "number" }, row.time), make("td", {}, row.model), make("td", { class: "number" }, `${row.prompts} ${row.prompts === 1 ? "prompt" : "prompts"}`), make("td", { class: "muted" }, row.kind === "autosave" ? "autosave" : row.name)));
    list.replaceChildren(rows.length ? make("table", { class: "data" }, make("tbody", {}, ...rows)) : make("p", { class: "muted" }, page.status.acknowledged < asked ? "Looking …" : "Nothing is saved yet: x saves the session."));
  };
  return dialog;
}

const TOUR = [
  [".strip", "The text", "Every token the model sees, coloured by the current view. e is the next view; point at a token for its numbers, click it to look from there."],
  [".candidates-card", "What it would say next", "j and k choose, → appends, ← takes back. Nothing is computed twice: going back is free."],
  [".panel", "Why it says so", "Each panel answers one question about the selected candidate. The dot is the identity that its numbers keep: point at it."],
  [".rail", "Other ways", "d makes a branch, w and s change between prompts, space samples, u undoes. Below: how tokens are drawn, and what is changed in the model."],
  ["header", "Anything else", "? shows every key. v chooses panels, f features, m another model. Everything works without a mouse."],
];

/** Five steps on a first visit. */
function makeTour(page) {
  const title = make("h1", {});
  const text = make("p", {});
  const place = make("span", { class: "muted number" });
  const next = make("button", { class: "main", onclick: () => show(step + 1) });
  const skip = make("button", { class: "plain", onclick: () => dialog.close() }, "Skip", make("kbd", {}, "esc"));
  const dialog = makeDialog("Tour", title, text, make("div", { class: "row" }, next, skip, make("span", { class: "grow" }), place));
  dialog.root.classList.add("tour");
  let step = 0;
  let offered = false;

  function show(to) {
    step = to;
    if (step >= TOUR.length) return dialog.close();
    const [selector, heading, words] = TOUR[step];
    setText(title, heading);
    setText(text, words);
    setText(place, `${step + 1} of ${TOUR.length}`);
    setText(next, step === TOUR.length - 1 ? "Start" : "Next");
    const shell = dialog.root.parentElement;
    shell.querySelector(".lit")?.classList.remove("lit");
    const part = shell.querySelector(selector);
    part?.classList.add("lit");
    const at = part?.getBoundingClientRect();
    if (at) {
      const { style } = dialog.box;
      const width = Math.min(380, innerWidth - 32), height = dialog.box.offsetHeight || 180;
      style.left = `${Math.max(16, Math.min(innerWidth - width - 16, at.left > innerWidth / 2 ? at.left - width - 12 : at.right + 12 + width > innerWidth ? at.left + 16 : at.right + 12))}px`;
      style.top = `${Math.max(52, Math.min(innerHeight - height - 40, at.bottom + height + 12 < innerHeight && at.width > innerWidth / 2 ? at.bottom + 12 : at.top + 24))}px`;
    }
    next.focus();
  }
  dialog.onclose = () => {
    dialog.root.parentElement.querySelector(".lit")?.classList.remove("lit");
    remember();
  };
  function remember() {
    try {
      localStorage.setItem("lensplorer-tour", "seen");
    } catch { /* then it is offered again */ }
  }
  /** Once, on the first visit of a browser. */
  dialog.offer = () => {
    if (offered) return;
    offered = true;
    let seen = "seen";
    try {
      seen = localStorage.getItem("lensplorer-tour");
    } catch { /* a browser that keeps nothing is not pestered */ }
    if (!seen && !navigator.webdriver) dialog.start();
  };
  dialog.start = () => (dialog.open(), show(0));
  return dialog;
}
