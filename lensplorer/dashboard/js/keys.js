// The keyboard: one listener on the window, in the capture phase, so that no widget swallows a command.

/** The name of a pressed key as the table of commands spells it: "j", "shift+u", "ctrl+$", "ArrowUp". */
function keyName(event) {
  let key = event.key;
  const letter = /^Key([A-Z])$/.exec(event.code);
  if (letter && (event.altKey || !/^[\x20-\x7e]$/.test(key))) key = letter[1]; // alt types another letter on some systems, other alphabets always do
  const isLetter = /^[a-z]$/i.test(key);
  if (isLetter) key = key.toLowerCase();
  const name = (event.ctrlKey ? "ctrl+" : "") + (event.altKey ? "alt+" : "") + (event.shiftKey && isLetter ? "shift+" : "");
  return name + key;
}

function isTyping(event) {
  const target = event.composedPath()[0];
  if (!(target instanceof HTMLElement)) return false;
  return target.isContentEditable || ["TEXTAREA", "SELECT"].includes(target.tagName) || (target.tagName === "INPUT" && !["checkbox", "radio"].includes(target.type));
}

/** Listen until the returned function is called. */
function listenForKeys(page) {
  const byKey = new Map(page.commands.flatMap((command) => command.keys.map((key) => [key, command])));
  const listener = (event) => {
    if (event.isComposing || event.metaKey || event.getModifierState?.("AltGraph") || isTyping(event)) return;
    const key = keyName(event);
    if (key === " " && event.composedPath()[0].matches?.("button:focus-visible, summary:focus-visible, input:focus-visible")) return; // the space bar presses what was reached by Tab
    const open = page.dialogs.find((dialog) => dialog.isOpen);
    if (open) {
      if (key === "Escape") open.close(), event.preventDefault(), event.stopPropagation(); // also when the focus has gone astray
      else if (key === "?" && open === page.help) open.close(), event.preventDefault();
      return;
    }
    const command = byKey.get(key);
    if (!command) return;
    event.preventDefault();
    event.stopPropagation();
    page.act(command.name, command.name === "go_to_view" ? { key } : {});
  };
  window.addEventListener("keydown", listener, true);
  return () => window.removeEventListener("keydown", listener, true);
}
