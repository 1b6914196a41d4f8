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
    if (!command.group || !command.keys.length) continue;
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
