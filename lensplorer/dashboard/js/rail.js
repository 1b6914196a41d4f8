// The rail: the tree of prompts and branches.

function makeRail(page) {
  const count = make("span", { class: "muted number" });
  const list = make("ol", { class: "prompts", "aria-label": "Prompts" });
  const root = make("nav", { class: "rail", "aria-label": "Prompts and branches" }, make("div", { class: "bar" }, make("h2", {}, "Prompts"), count), page.buttons("prompts"), list);

  list.addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (!item) return;
    if (item.classList.contains("current")) page.editor.open();
    else page.act("go_to_prompt", { index: Number(item.dataset.index) });
  });

  function draw() {
    const { rows = [], most = 0 } = page.prompts;
    setText(count, `${rows.length} / ${most}`);
    list.replaceChildren(...rows.map((row, index) => {
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
    list.querySelector(".current")?.scrollIntoView({ block: "nearest" });
  }
  return { root, draw };
}
