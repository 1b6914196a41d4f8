// Shared by every part of the page: elements, numbers, icons. Text only ever enters the document through textContent.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a child that is no node becomes text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set text only where it differs: an untouched node costs nothing, and a text node that stays costs less than a new one. */
function setText(element, text) {
  const node = element.firstChild;
  if (element.textContent === text) return;
  if (node?.nodeType === Node.TEXT_NODE && !node.nextSibling && text !== "") node.data = text;
  else element.textContent = text;
}

const INVISIBLE = /([␠⏎␍⇥∅]|⟨[^⟩]*⟩)/;

/** Draw the visible text of a token: marks for what cannot be seen are dimmed, and a space is a low bracket as wide as a letter. */
function drawToken(element, visible) {
  if (element.shown === visible) return;
  element.shown = visible;
  element.replaceChildren(
    ...visible.split(INVISIBLE).filter((piece) => piece !== "").map((piece) => {
      if (piece === "␠") return make("i", { class: "space" }, " ");
      if (INVISIBLE.test(piece)) return make("i", { class: "mark" }, piece);
      return document.createTextNode(piece);
    }),
  );
}

/** Three significant digits; tiny and huge numbers as 1.2e-5. */
function formatNumber(value, digits = 3) {
  if (value == null || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e").replace("-", "−").replace("e-", "e−");
  const decimals = size === 0 ? 0 : Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return (size >= 1000 ? Math.round(value).toLocaleString("en") : value.toFixed(decimals)).replace("-", "−");
}

/** A probability as 12.3 %; tiny ones as 1.2e−5. */
function formatProbability(value) {
  if (value == null || Number.isNaN(value)) return "–";
  if (value === 0 || value === 1) return `${100 * value} %`;
  if (value < 1e-3) return formatNumber(value);
  const percent = 100 * value;
  return `${percent >= 99.95 && value < 1 ? percent.toFixed(2) : percent.toFixed(percent >= 9.995 ? 1 : 2)} %`;
}

/** A value of a view or score, by its unit. */
function formatValue(value, unit) {
  if (value == null) return "–";
  if (unit === "probability") return formatProbability(value);
  if (unit === "count") return Math.round(value).toLocaleString("en");
  return unit ? `${formatNumber(value)} ${unit}` : formatNumber(value);
}

/** A trust badge: a dot and the figure of an identity; its meaning on hover. */
function makeBadge() {
  const dot = make("span", { class: "dot" });
  const text = make("span", {});
  const root = make("span", { class: "badge number", hidden: true }, dot, text);
  function draw(badge) {
    root.hidden = !badge;
    if (!badge) return;
    dot.className = `dot ${badge.level}`;
    setText(text, badge.text);
    root.title = badge.about;
  }
  return { root, draw };
}

const PATHS = {
  edit: "M3 13h2.5L13 5.5 10.5 3 3 10.5zM9 4.5 11.5 7",
  branch: "M5 3v10M5 9c0-3 6-1.500 6-5M11 4V3",
  remove: "M4 4l8 8M12 4l-8 8",
  undo: "M6 4 3 7l3 3M3 7h6.500a3 3 0 0 1 0 6H7",
  redo: "M10 4l3 3-3 3M13 7H6.500a3 3 0 0 0 0 6H9",
  reset: "M12.500 6A5 5 0 1 0 13 9M13 3v3.500H9.500",
  save: "M8 3v7M5 7.500 8 10.500l3-3M3 13h10",
  theme: "M13 9.500A5.500 5.500 0 1 1 6.500 3a4.500 4.500 0 0 0 6.500 6.500z",
  "?": "M6 6.200a2 2 0 1 1 2.800 1.900c-.6.3-.8.7-.8 1.400M8 11.800v.2",
  append: "M3 8h9M9 5l3 3-3 3",
  backspace: "M13 8H4M7 5 4 8l3 3",
  sample: "M3 3h10v10H3zM6 6v.1M10 10v.1M10 6v.1M6 10v.1",
  play: "M5 3.500v9l7-4.500z",
  z: "M5 4h6L5 12h6",
  more: "M4 8h.01M8 8h.01M12 8h.01",
  maximise: "M9.500 3H13v3.500M6.500 13H3V9.500M13 3 9 7M3 13l4-4",
  panels: "M3 3h4.500v4.500H3zM8.500 3H13v4.500H8.500zM3 8.500h4.500V13H3zM8.500 8.500H13V13H8.500z",
  open: "M2.500 12.500V4h4l1.500 1.500h5.500v7z",
  link: "M6.500 9.500l3-3M7 4.500l1.200-1.200a2.600 2.600 0 0 1 3.700 3.700L10.500 8.500M9 11.500l-1.200 1.200a2.600 2.600 0 0 1-3.700-3.700L5.500 7.500",
};

function icon(name) {
  return svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: PATHS[name] ?? PATHS["?"] }));
}

const KEY_NAMES = { ArrowDown: "↓", ArrowUp: "↑", ArrowRight: "→", ArrowLeft: "←", " ": "space" };

function keyLabel(key) {
  return key.split("+").map((part) => KEY_NAMES[part] ?? part).join(" + ");
}

/** Fill and ink of a value on the scale of a quantity. */
function colourOf(page, part, value) {
  if (value == null || !part.quantity) return null;
  const scale = page.scales[part.quantity][page.theme];
  const share = part.high > part.low ? (value - part.low) / (part.high - part.low) : 0;
  const at = Math.max(0, Math.min(scale.fill.length - 1, Math.round(share * (scale.fill.length - 1))));
  return { fill: scale.fill[at], ink: scale.ink[at] };
}

/** A line that grows with what is running, how long it takes, and the button that stops it. */
function fillProgress(line, running, page) {
  const share = running.expected > 0 ? Math.min(0.97, running.seconds / running.expected) : 0.5;
  const text = `${formatSeconds(running.seconds)} of about ${formatSeconds(Math.max(running.expected, running.seconds))}, ${running.runs} runs`;
  line.replaceChildren(make("span", { class: "done", style: `width:${100 * share}%` }), make("span", { class: "said number" }, text),
    make("button", { class: "small", onclick: () => page.act("stop") }, "Stop ", make("kbd", {}, ".")));
}
