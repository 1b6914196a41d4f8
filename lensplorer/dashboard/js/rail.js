// The rail: the tree of prompts and branches, the decoding settings, the interventions in force.

const KNOBS = [
  ["temperature", "temperature", 0.1], ["top_k", "top-k", 1], ["top_p", "top-p", 0.05], ["min_p", "min-p", 0.01],
  ["repetition_penalty", "repetition", 0.05], ["presence_penalty", "presence", 0.1], ["frequency_penalty", "frequency", 0.1], ["seed", "seed", 1],
];
const CONSTRAINTS = [["choice", "one of (a|b|c)"], ["regex", "regular expression"], ["grammar", "Lark grammar"], ["json", "JSON schema"]];

function makeRail(page) {
  const count = make("span", { class: "muted number" });
  const list = make("ol", { class: "prompts", "aria-label": "Prompts" });
  const decoding = makeDecoding(page);
  const changes = make("ul", { class: "changes", "aria-label": "Interventions in force" });
  const changed = make("div", { class: "section", hidden: true }, make("h2", {}, "Interventions"), changes,
    make("button", { class: "small", onclick: () => page.act("clear_interventions") }, "Take all off"));
  const root = make("nav", { class: "rail", "aria-label": "Prompts, sampling and interventions" },
    make("div", { class: "bar" }, make("h2", {}, "Prompts"), count), page.buttons("prompts"), list, changed, decoding.root);

  list.addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (!item) return;
    if (item.classList.contains("current")) page.editor.open();
    else page.act("go_to_prompt", { index: Number(item.dataset.index) });
  });

  let drawn = null, shown = 0;
  function draw() {
    const { rows = [], most = 0 } = page.prompts;
    setText(count, `${rows.length} / ${most}`);
    if (drawn !== page.prompts) list.replaceChildren(...rows.map((row, index) => {
      const text = make("span", { class: "text" });
      text.textContent = row.text.trimStart() || (row.shared ? "(same so far)" : "(empty)");
      if (!row.text) text.classList.add("muted");
      const size = make("span", { class: "muted number" }, row.shared ? `${row.shared} + ${row.n - row.shared}` : String(row.n));
      const item = make("li", {
        class: row.current ? "current" : "", "data-index": index, style: `--depth:${Math.min(row.depth, 5)}`,
        title: row.current ? "The prompt on screen: click to edit it (i)" : "Go to this prompt (w, s)",
      }, make("button", { "aria-current": row.current ? "true" : "false" }, row.depth ? icon("branch") : "", text, size));
      return item;
    }));
    drawn = page.prompts;
    const current = rows.findIndex((row) => row.current);
    if (current !== shown) requestAnimationFrame(() => list.children[current]?.scrollIntoView({ block: "nearest" }));
    shown = current;
    const inForce = page.settings?.interventions ?? [];
    changed.hidden = !inForce.length;
    changes.replaceChildren(...inForce.map((text, index) => make("li", { title: text }, make("span", { class: "text mono" }, text),
      make("button", { class: "icon", title: "Take it off", "aria-label": `Take off ${text}`, onclick: () => page.act("remove_intervention", { index }) }, icon("remove")))));
    decoding.draw();
  }

  function toggle() {
    root.parentElement.classList.toggle("narrow");
  }
  return { root, draw, toggle };
}

/** The knobs of sampling, from the preset to the constraint. */
function makeDecoding(page) {
  const preset = make("select", { "aria-label": "Preset", onchange: () => (preset.blur(), page.act("set_decoding", { name: "preset", value: preset.value })) });
  const knobs = KNOBS.map(([name, text, step]) => {
    const input = make("input", { type: "number", step, name, class: "number", placeholder: name === "seed" ? "fresh" : "" });
    input.addEventListener("change", () => page.act("set_decoding", { name, value: input.value }));
    input.addEventListener("keydown", (event) => ["Enter", "Escape"].includes(event.key) && (input.blur(), event.stopPropagation()));
    return { name, input, root: make("label", {}, make("span", {}, text), input) };
  });
  const greedy = make("input", { type: "checkbox", onchange: () => page.act("set_decoding", { name: "greedy", value: greedy.checked }) });
  const stops = make("input", { type: "text", class: "mono", placeholder: "stop texts, a|b", "aria-label": "Stop sequences, separated by |" });
  stops.addEventListener("change", () => page.act("set_decoding", { name: "stop_sequences", value: stops.value }));
  const kind = make("select", { "aria-label": "Kind of constraint" }, ...CONSTRAINTS.map(([value, text]) => make("option", { value }, text)));
  const text = make("textarea", { rows: "2", spellcheck: "false", class: "mono", "aria-label": "Constraint", placeholder: "the completion must match …" });
  const constrain = make("button", { class: "small", onclick: () => page.act("constrain", { kind: kind.value, text: text.value }) }, "Constrain from here");
  const lift = make("button", { class: "small", onclick: () => ((text.value = ""), page.act("constrain", { kind: kind.value, text: "" })) }, "Lift");
  const state = make("p", { class: "muted" });
  const root = make("details", { class: "section decoding", open: true }, make("summary", {}, make("h2", {}, "Sampling"), make("span", { class: "grow" }), preset),
    make("div", { class: "knobs" }, ...knobs.map((knob) => knob.root), make("label", { class: "flag" }, greedy, "greedy")), stops,
    make("details", { class: "constraint" }, make("summary", {}, "Constraint"), kind, text, make("div", { class: "row" }, constrain, lift)), state);
  kind.addEventListener("change", () => kind.blur());
  preset.addEventListener("click", (event) => event.stopPropagation());
  let drawn = "";

  function draw() {
    const settings = page.settings ?? {};
    const now = JSON.stringify(settings);
    if (!settings.decoding || now === drawn) return;
    drawn = now;
    preset.replaceChildren(...[...settings.presets, "custom"].map((name) => make("option", { value: name, disabled: name === "custom" }, name)));
    preset.value = settings.preset;
    const active = root.getRootNode().activeElement;
    for (const { name, input } of knobs) if (input !== active) input.value = settings.decoding[name] ?? "";
    greedy.checked = settings.decoding.greedy;
    if (stops !== active) stops.value = (settings.decoding.stop_sequences ?? []).join("|");
    const { constraint } = settings;
    setText(state, [constraint && `Completions must match the ${CONSTRAINTS.find(([name]) => name === constraint.kind)?.[1] ?? constraint.kind} ${constraint.text.slice(0, 80)}`, settings.stopped && `Stopped: ${settings.stopped.replaceAll("_", " ")}.`].filter(Boolean).join(". "));
    lift.disabled = !constraint;
  }
  return { root, draw };
}
