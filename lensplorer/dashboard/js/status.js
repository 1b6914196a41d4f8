// The status line and the model's chip: where you are, what it is, how long it took, what went wrong.

function makeStatus(page) {
  const dot = make("span", { class: "dot" });
  const chipText = make("span", { class: "number" });
  const chip = make("button", { class: "chip", onclick: () => page.act("choose_model") }, dot, chipText);
  const place = make("span", { class: "number" });
  const token = make("span", { class: "mono" });
  const id = make("span", { class: "number muted" });
  const value = make("span", { class: "number" });
  const message = make("span", { class: "message", role: "status", "aria-live": "polite" });
  const time = make("span", { class: "number muted" });
  const running = make("span", { class: "running muted" });
  const root = make("footer", { "aria-label": "Status" }, place, token, id, value, message, make("span", { class: "grow" }), running, time);
  let timer = null;

  const saeDot = make("span", { class: "dot" });
  const saeText = make("span", {});
  const saeChip = make("button", { class: "chip", onclick: () => page.act("choose_sae"), title: "SAEs of this model: choose, search, load (f)" }, saeDot, saeText);

  function drawSaeChip() {
    const saes = page.model.saes ?? { loaded: [], loading: [] };
    const text = saes.loading.length ? `loading ${saes.loading[0]} …` : saes.chosen ? `${saes.chosen}${saes.loaded.length > 1 ? `  ·  ${saes.loaded.length} SAEs` : ""}` : saes.error ? "no SAE: see why" : "no SAE";
    setText(saeText, text);
    saeDot.className = `dot ${saes.error ? "bad" : saes.loading.length ? "near" : saes.chosen ? "good" : ""}`;
    saeChip.hidden = !page.model.name;
  }

  function drawChip() {
    drawSaeChip();
    const model = page.model;
    const facts = model.name ? [model.name, model.device, model.dtype, model.backend, model.difference == null ? "Δ not measured" : `Δ ${formatNumber(model.difference)}`] : [];
    if (model.toy) facts.splice(1, 0, "toy world");
    if (model.loading) facts.push(`loading ${model.loading} …`);
    if (model.error && !model.name) facts.push("no model");
    setText(chipText, facts.join("  ·  "));
    dot.className = `dot ${model.error ? "bad" : model.loading ? "near" : model.difference == null ? "near" : "good"}`;
    const proof = model.difference == null ? "" : "Δ: largest difference of a logit to Hugging Face's on a probe, relative to the largest logit.";
    chip.title = [model.error, model.reason && `The bridge serves: ${model.reason}`, proof, model.toy && "A small model of a toy world, grown with this program: it knows its stories, not the world.", "Click to load another model (m)"].filter(Boolean).join("\n");
  }

  function draw() {
    drawChip();
    const part = page.strip;
    const n = part.tokens?.length ?? 0;
    const at = Math.min(page.local.cursor ?? n - 1, n - 1);
    root.classList.toggle("blank", n === 0);
    if (n) {
      setText(place, `${page.local.cursor == null ? "last" : "cursor"} ${at} / ${n - 1}`);
      drawToken(token, part.tokens[at]);
      setText(id, `id ${part.ids[at]}`);
      const view = page.colouring ?? {};
      setText(value, page.selection ? selected() : view.values ? `${view.label.toLowerCase()} ${formatValue(view.values[at], view.unit)}` : "");
    } else for (const each of [place, id, value]) setText(each, "");
    const said = page.status.message ?? (page.model.error ? { kind: "error", text: page.model.error } : null);
    setText(message, said?.text ?? "");
    message.className = `message is-${said?.kind ?? "silent"}`;
    setText(time, page.status.milliseconds == null ? "" : `${formatNumber(page.status.milliseconds)} ms`);
    time.title = "What the last step took on the server";
    const busy = page.local.sent > page.status.acknowledged;
    if (!busy) clearTimeout(timer), (timer = null), show(false);
  }

  /** The selected tokens: how many, and what their probabilities and surprisals come to. */
  function selected() {
    const [from, to] = page.selection;
    const of = (label) => page.strip.scores.find((score) => score.label === label)?.values.slice(from, to + 1).filter((value) => value != null) ?? [];
    const surprisal = of("surprisal").reduce((sum, value) => sum + value, 0);
    return `selected ${from}–${to}: ${to - from + 1} tokens, ${formatNumber(surprisal)} bits, probability of the whole ${formatProbability(2 ** -surprisal)}`;
  }
  page.drawStatus = draw;

  /** Say that something is running, but only when it takes long enough to be noticed. */
  function working() {
    timer ??= setTimeout(() => show(true), 150);
  }
  function show(busy) {
    const loading = page.model.loading;
    setText(running, loading ? `loading ${loading}` : page.status.playing ? "playing: g pauses" : page.running ? `running ${page.running.panel}: . stops` : busy ? "computing" : "");
    root.parentElement?.classList.toggle("busy", busy);
  }
  return { root, chip, saeChip, draw, working };
}
