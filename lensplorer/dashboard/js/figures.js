// The figures: SVG from plain data. Concrete colours, so that an exported figure looks as it does here.
//
// A mark may carry what is said of it (data-tip, lines of text), the position it is about (data-position) and a command (data-do). The panels take
// care of pointing and clicking. Figures over the token axis share their left and right borders, and are aligned to the pixel.

const LEFT = 60, RIGHT = 12;
const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif";
const CATEGORIES = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#b8a800", "#999999"];

/** A mark of a figure, as a plain description. */
class Shape {
  constructor(tag, attributes, children) {
    (this.tag = tag), (this.attributes = attributes), (this.children = children), (this.text = "");
  }
  append(...more) {
    for (const child of more) this.children.push(child);
  }
}
const shape = (tag, attributes = {}, ...children) => new Shape(tag, attributes, children);

/** The element of a shape: an element drawn before becomes it where it can, and only what differs is touched. What has not changed costs nothing. */
function drawn(wanted, element) {
  const before = element?.shape?.tag === wanted.tag ? element.shape : null;
  if (!before) element = document.createElementNS(SVG, wanted.tag);
  const old = before?.attributes ?? {};
  for (const name in wanted.attributes) {
    const value = wanted.attributes[name];
    if (value == null ? old[name] != null : value !== old[name]) value == null ? element.removeAttribute(name) : element.setAttribute(name, value);
  }
  for (const name in old) if (!(name in wanted.attributes)) element.removeAttribute(name);
  if (wanted.text !== (before?.text ?? "")) setText(element, wanted.text);
  if (!wanted.text) {
    let at = element.firstChild;
    for (const child of wanted.children) {
      const made = drawn(child, at);
      if (made !== at) at ? at.replaceWith(made) : element.append(made);
      at = made.nextSibling;
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }
  (element.shape = wanted), (element.cellAt = wanted.cellAt);
  return element;
}

/** Text at a place; long text is cut, and said whole on hover. */
function label(said, x, y, { anchor = "start", fill, longest = 99, turn, size = 12, weight, mono } = {}) {
  const text = said.replaceAll("␠", "␣");
  const shown = text.length > longest ? `${text.slice(0, longest - 1)}…` : text;
  const node = shape("text", {
    x, y, fill, "text-anchor": anchor, "font-size": size, "font-weight": weight, "font-family": mono ? "ui-monospace, 'DejaVu Sans Mono', 'Liberation Mono', monospace" : null,
    transform: turn ? `rotate(${turn} ${x} ${y})` : null, "data-tip": shown === text ? null : text,
  });
  node.text = shown;
  return node;
}

/** A token under an axis: without the mark of its leading space. */
const tokenLabel = (token) => token.replace(/^␠/, "") || "␣";

/** About n round numbers from low to high. */
function ticks(low, high, n = 4) {
  const span = high - low || 1;
  const step = 10 ** Math.floor(Math.log10(span / n));
  const nice = [1, 2, 2.5, 5, 10].map((m) => m * step).find((s) => span / s <= n + 0.5) ?? 10 * step;
  const found = [];
  for (let t = Math.ceil(low / nice - 1e-9) * nice; t <= high + 1e-9 * span; t += nice) found.push(Math.abs(t) < 1e-12 * span ? 0 : t);
  return found;
}

const axisNumber = (value, unit) => (unit === "probability" ? `${+(100 * value).toPrecision(3)} %` : formatTick(value));
function formatTick(value) {
  const size = Math.abs(value);
  return (size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(0) : String(+value.toPrecision(3))).replace("-", "−");
}

const FIGURES = { columns: drawColumns, bars: drawBars, heat: drawHeat, lines: drawLines, scatter: drawScatter };

/** The SVG of a figure as wide as its place, and as high as it asks for, or as its place where that is large; an element drawn before is used again. */
function drawFigure(page, figure, width, height, isLarge, element) {
  const root = FIGURES[figure.kind](page, figure, Math.max(160, Math.floor(width)), Math.max(60, Math.floor(height)), isLarge);
  Object.assign(root.attributes, { style: `font:${FONT}`, xmlns: SVG, class: `figure of-${figure.kind}`, role: "img" });
  return drawn(root, element);
}

function canvas(width, height) {
  return shape("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
}

/** Labels of the token axis, as many as fit. */
function tokenAxis(root, colours, tokens, xOf, y, step, { mark, turn = true } = {}) {
  const every = Math.max(1, Math.ceil((turn ? 13 : 40) / step));
  tokens.forEach((token, i) => {
    if (i % every && i !== mark) return;
    if (i !== mark && mark != null && Math.abs(i - mark) < every && i % every === 0 && every > 1) return;
    root.append(label(tokenLabel(token), xOf(i) + (turn ? 4 : 0), y, { fill: i === mark ? colours.text : colours.muted, anchor: turn ? "end" : "middle", longest: 10, turn: turn ? -50 : 0, weight: i === mark ? 600 : null }));
  });
}

/** Room for so many tokens on an axis: it grows by the dozen, so that a step moves nothing else. */
const roomFor = (n) => Math.max(24, 12 * Math.ceil(n / 12));

/** A number per token: bars over the token axis, with the cursor's column marked. */
function drawColumns(page, figure, width, height) {
  const colours = page.colours;
  const root = canvas(width, height);
  const n = figure.values.length;
  const room = roomFor(n);
  const bottomSpace = 68, topSpace = figure.label ? 20 : 8;
  const inner = width - LEFT - RIGHT, step = inner / room;
  const low = figure.bottom ?? Math.min(0, figure.low), high = figure.top ?? figure.high;
  const yOf = (value) => topSpace + (height - topSpace - bottomSpace) * (1 - (value - low) / (high - low || 1));
  const xOf = (i) => LEFT + (i + 0.5) * step;
  const at = page.at();
  if (figure.label) root.append(label(figure.label, LEFT, 12, { fill: colours.muted }));
  for (const t of ticks(low, high, 3)) {
    root.append(shape("line", { x1: LEFT, x2: width - RIGHT, y1: yOf(t), y2: yOf(t), stroke: colours.line, "stroke-width": 1 }));
    root.append(label(axisNumber(t, figure.unit), LEFT - 8, yOf(t) + 4, { anchor: "end", fill: colours.muted }));
  }
  const bars = shape("g"), names = shape("g");
  if (at >= figure.first && at < figure.first + n) {
    bars.append(shape("rect", { x: xOf(at - figure.first) - step / 2, y: topSpace, width: step, height: height - topSpace - bottomSpace, fill: colours.accent, "fill-opacity": 0.14 }));
  }
  const base = yOf(Math.max(low, Math.min(high, figure.floor ?? 0)));
  for (let i = 0; i < n; i++) {
    const value = figure.values[i];
    const tip = `${figure.tokens[i]}\nposition ${figure.first + i}\n${formatValue(value, figure.unit)}`;
    if (value != null) {
      const y = yOf(Math.max(low, Math.min(high, value)));
      bars.append(shape("rect", { class: "datum", x: xOf(i) - 0.43 * step, width: 0.86 * step, y: Math.min(y, base), height: Math.max(1, Math.abs(y - base)), fill: colourOf(page, figure, value).fill }));
    }
    bars.append(shape("rect", { class: "hit", x: xOf(i) - step / 2, width: step, y: topSpace, height: height - topSpace - 6, fill: "transparent", "data-tip": tip, "data-position": figure.first + i }));
  }
  tokenAxis(names, colours, figure.tokens, xOf, height - bottomSpace + 14, step, { mark: at - figure.first });
  root.append(bars, names);
  return root;
}

/** Where things of these widths stand in a row, or in the next line where it is full. */
function placed(widths, width) {
  let x = 8, line = 0;
  return widths.map((each) => {
    if (x + each - 20 > width && x > 8) (x = 8), line++;
    return (x += each), { x: x - each, line };
  });
}

/** The third series of bars is told from the second by its line. */
const dashed = (k) => (k > 1 ? "2 2" : null);

/** Rows of horizontal bars from zero. */
function drawBars(page, figure, width, tall, isLarge) {
  const colours = page.colours;
  const n = figure.series.length;
  const keys = placed(figure.series.map((series) => 36 + 6.6 * series.name.length), width);
  const top = n > 1 ? 22 + 16 * keys.at(-1).line : 4;
  const rowHeight = Math.max(n > 1 ? 4 + 11 * n : 20, isLarge ? Math.min(34, (tall - top - 4) / figure.labels.length) : 0);
  const height = top + figure.labels.length * rowHeight + 4;
  const root = canvas(width, height);
  const left = 84, right = 64, inner = width - left - right;
  const known = figure.series.flatMap((series) => series.values).filter((value) => value != null);
  const low = Math.min(0, ...known), high = Math.max(0, ...known, low === 0 ? 1e-12 : 0);
  const xOf = (value) => left + (inner * (value - low)) / (high - low || 1);
  if (n > 1) {
    figure.series.forEach((series, k) => {
      const { x, line } = keys[k];
      root.append(shape("rect", { x, y: 5 + 16 * line, width: 10, height: 10, fill: k ? "none" : colours.muted, stroke: colours.muted, "stroke-dasharray": dashed(k) }), label(series.name, x + 15, 14 + 16 * line, { fill: colours.muted }));
    });
  }
  figure.labels.forEach((name, row) => {
    const y = top + row * rowHeight;
    root.append(label(name, left - 8, y + rowHeight / 2 + 4, { anchor: "end", fill: colours.text, longest: 12 }));
    figure.series.forEach((series, k) => {
      const value = series.values[row];
      if (value == null) return;
      const fill = colourOf(page, figure, figure.quantity === "signed" ? Math.sign(value) * figure.high * 0.85 : value).fill;
      const thick = n > 1 ? 9 : 14, barY = y + (n > 1 ? 3 + 11 * k : 3);
      const x = Math.min(xOf(0), xOf(value)), w = Math.max(1, Math.abs(xOf(value) - xOf(0)));
      root.append(shape("rect", { class: "datum", x, y: barY, width: w, height: thick, fill: k ? "none" : fill, stroke: k ? colours.text : null, "stroke-opacity": 0.75, "stroke-dasharray": dashed(k), "data-row": row, "data-tip": `${name}\n${series.name}\n${formatValue(value, figure.unit)}` }));
      const before = value < 0 && x - 44 > left; // left of its bar, where that leaves the names alone
      if (!k) root.append(label(formatNumber(value), before ? x - 5 : Math.max(x + w, xOf(0)) + 5, y + (n > 1 ? 11 : rowHeight / 2 + 4), { anchor: before ? "end" : "start", fill: colours.muted, size: 11 }));
    });
  });
  root.append(shape("line", { x1: xOf(0), x2: xOf(0), y1: top, y2: height - 4, stroke: colours.muted, "stroke-width": 1 }));
  return root;
}

/** A grid of colours: one picture, or with text in the cells; positions on the columns may be windowed to what fits. */
function drawHeat(page, figure, width, height, isLarge) {
  const colours = page.colours;
  const rows = figure.values.length;
  const all = figure.values[0]?.length ?? 0;
  const longestRow = Math.max(...figure.rows.map((row) => tokenLabel(row).length), 3);
  const left = Math.max(LEFT, Math.min(110, 10 + 6.6 * Math.min(longestRow, 14)));
  const withText = figure.texts || figure.show_values;
  let from = 0, n = all, fits = all;
  if (figure.fit && figure.texts) {
    fits = n = Math.max(1, Math.min(all, Math.floor((width - left - RIGHT) / figure.fit)));
    from = Math.max(0, Math.min(all - n, (figure.mark ?? all - 1) - Math.floor(0.75 * n)));
    from = Math.min(4 * Math.ceil(((figure.first ?? 0) + from) / 4) - (figure.first ?? 0), figure.mark ?? all - 1); // by fours, so that a step moves nothing else
    n = Math.min(n, all - from);
  }
  const isToken = figure.column === "position";
  const named = figure.texts || figure.show_values; // columns are named above
  const head = named ? 22 : 4;
  const foot = named ? 4 : isToken ? 68 : 22;
  const inner = width - left - RIGHT;
  const room = figure.texts || !isToken ? fits : roomFor(n);
  const cell = figure.fit ? Math.min(inner / room, figure.texts ? 120 : 150) : inner / room;
  const most = isLarge ? 60 : 22, fair = (height - head - foot) / rows;
  const wanted = withText ? Math.max(figure.texts ? 23 : 19, isLarge ? Math.min(40, fair) : 0) : Math.max(3, Math.min(most, fair));
  const tall = head + foot + rows * wanted;
  const root = canvas(width, tall);
  const xOf = (i) => left + (i + 0.5) * cell;
  const rowY = (r) => head + r * wanted;
  const cellsWide = n * cell;
  const colour = (value) => colourOf(page, figure, value)?.fill ?? colours.card;
  if (withText || rows * n <= 250) {
    for (let i = 0; i < n; i++) {
      const column = shape("g");
      for (let r = 0; r < rows; r++) {
        const value = figure.values[r][from + i];
        const gap = withText || wanted > 8 ? 1 : 0;
        column.append(shape("rect", { class: "cell", x: left + i * cell + gap / 2, y: rowY(r) + gap / 2, width: Math.max(1, cell - gap), height: Math.max(1, wanted - gap), rx: withText ? 2 : 0, fill: value == null ? colours.card : colour(value), "data-row": r }));
        const text = figure.texts ? figure.texts[r][from + i] : figure.show_values && value != null ? (figure.unit === "probability" ? formatProbability(value) : formatNumber(value)) : null;
        if (text != null) {
          const ink = value == null ? colours.muted : colourOf(page, figure, value).ink;
          column.append(label(figure.texts ? text.replace(/^␠/, "␣") : text, left + i * cell + 6, rowY(r) + wanted / 2 + 4, { fill: ink, longest: Math.floor((cell - 8) / 7.3), mono: Boolean(figure.texts), size: 12 }));
        }
      }
      root.append(column);
    }
  } else {
    const picture = document.createElement("canvas");
    picture.width = n;
    picture.height = rows;
    const context = picture.getContext("2d");
    const pixels = context.createImageData(n, rows);
    for (let r = 0; r < rows; r++) {
      for (let i = 0; i < n; i++) {
        const value = figure.values[r][from + i];
        const hex = value == null ? colours.card : colour(value);
        const at = 4 * (r * n + i);
        for (let c = 0; c < 3; c++) pixels.data[at + c] = parseInt(hex.slice(1 + 2 * c, 3 + 2 * c), 16);
        pixels.data[at + 3] = 255;
      }
    }
    context.putImageData(pixels, 0, 0);
    root.append(shape("image", { href: picture.toDataURL(), x: left, y: head, width: cellsWide, height: rows * wanted, preserveAspectRatio: "none", style: "image-rendering:pixelated" }));
  }
  const hit = shape("rect", { class: "hit", x: left, y: head, width: cellsWide, height: rows * wanted, fill: "transparent" });
  hit.cellAt = (x, y) => {
    const i = Math.floor((x - left) / cell), r = Math.floor((y - head) / wanted);
    return i < 0 || i >= n || r < 0 || r >= rows ? null : { row: r, column: from + i };
  };
  root.append(hit);
  const everyRow = Math.max(1, Math.ceil(13 / wanted));
  figure.rows.forEach((row, r) => {
    if (r % everyRow && r !== figure.mark_row) return;
    root.append(label(tokenLabel(row), left - 8, rowY(r) + wanted / 2 + 4, { anchor: "end", fill: r === figure.mark_row ? colours.text : colours.muted, longest: 14 }));
  });
  const shown = figure.columns.slice(from, from + n);
  const mark = figure.mark != null ? figure.mark - from : null;
  if (figure.texts) {
    shown.forEach((token, i) => root.append(label(token.replace(/^␠/, "␣"), left + i * cell + 6, 15, { fill: i === mark ? colours.text : colours.muted, mono: true, longest: Math.floor((cell - 8) / 7.3), weight: i === mark ? 600 : null })));
  } else if (named) {
    shown.forEach((name, i) => root.append(label(name, left + i * cell + 6, 15, { fill: colours.muted, longest: Math.max(3, Math.floor((cell - 4) / 6.2)) })));
  } else if (isToken) tokenAxis(root, colours, shown, xOf, tall - foot + 14, cell, { mark });
  else {
    const every = Math.max(1, Math.ceil(52 / cell));
    shown.forEach((name, i) => i % every || root.append(label(name, xOf(i), tall - 7, { anchor: "middle", fill: colours.muted, longest: Math.max(3, Math.floor((every * cell) / 6.4)) })));
  }
  if (mark != null && mark >= 0 && mark < n) {
    root.append(shape("rect", { x: left + mark * cell, y: figure.texts ? 0.5 : head, width: cell, height: rows * wanted + (figure.texts ? head : 0), fill: "none", stroke: colours.accent, "stroke-width": 1.25, "pointer-events": "none", rx: 2 }));
  }
  return root;
}

function drawLines(page, figure, width, height) {
  const colours = page.colours;
  const root = canvas(width, height);
  const wide = width > 420;
  const right = wide ? 130 : RIGHT, foot = wide ? 24 : 24 + 16 * figure.series.length, top = 10;
  const values = figure.series.flatMap((series) => series.values).filter((value) => value != null);
  let low = Math.min(...values), high = Math.max(...values);
  if (figure.unit === "probability") (low = 0), (high = 1);
  else if (low > 0 && low < 0.4 * high) low = 0;
  if (low === high) (low -= 0.5), (high += 0.5);
  const n = figure.x.length;
  const xOf = (i) => LEFT + (n > 1 ? (i * (width - LEFT - right)) / (n - 1) : 0);
  const yOf = (value) => top + (height - top - foot) * (1 - (value - low) / (high - low));
  for (const t of ticks(low, high)) {
    root.append(shape("line", { x1: LEFT, x2: width - right, y1: yOf(t), y2: yOf(t), stroke: colours.line }), label(axisNumber(t, figure.unit), LEFT - 8, yOf(t) + 4, { anchor: "end", fill: colours.muted }));
  }
  if (low < 0 && high > 0) root.append(shape("line", { x1: LEFT, x2: width - right, y1: yOf(0), y2: yOf(0), stroke: colours.muted }));
  const every = Math.max(1, Math.ceil((54 * n) / (width - LEFT - right)));
  figure.x.forEach((name, i) => i % every && i !== n - 1 ? null : i !== n - 1 && n - 1 - i < every ? null : root.append(label(name, xOf(i), height - foot + 17, { anchor: !wide && i === n - 1 ? "end" : "middle", fill: colours.muted, longest: 9 })));
  const ends = [];
  figure.series.forEach((series, k) => {
    const colour = CATEGORIES[k % CATEGORIES.length];
    const points = series.values.map((value, i) => (value == null ? null : [xOf(i), yOf(value)]));
    const path = points.map((point, i) => (point ? `${i && points[i - 1] ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}` : "")).join("");
    root.append(shape("path", { d: path, fill: "none", stroke: colour, "stroke-width": series.strong ? 2.5 : 1.5 }));
    points.forEach((point, i) => point && root.append(shape("circle", { cx: point[0], cy: point[1], r: series.strong ? 3.5 : 2.5, fill: colour, "data-tip": `${series.name}\n${figure.x[i]}\n${formatValue(series.values[i], figure.unit)}` })));
    ends.push({ y: points.at(-1)?.[1] ?? top, series, colour });
  });
  if (wide) {
    ends.sort((a, b) => a.y - b.y);
    const places = ends.map((end) => end.y + 4); // apart from each other, and above the axis
    for (let i = 1; i < places.length; i++) places[i] = Math.max(places[i], places[i - 1] + 14);
    for (let i = places.length - 1, most = height - foot + 4; i >= 0; i--, most = Math.min(most, places[i + 1]) - 14) places[i] = Math.min(places[i], most);
    for (const [i, end] of ends.entries()) {
      const y = places[i];
      root.append(label(tokenLabel(end.series.name), width - right + 10, y, { fill: end.colour, longest: 17, weight: end.series.strong ? 600 : null }));
    }
  } else ends.forEach((end, k) => root.append(shape("rect", { x: LEFT, y: height - 16 * (figure.series.length - k) + 2, width: 10, height: 3, y2: 0, fill: end.colour }), label(end.series.name, LEFT + 16, height - 16 * (figure.series.length - k) + 8, { fill: colours.text, longest: 34 })));
  return root;
}

function drawScatter(page, figure, width) {
  const colours = page.colours;
  const height = 220;
  const root = canvas(width, height);
  const span = (key) => {
    const all = figure.points.map((point) => point[key]);
    const low = Math.min(...all), high = Math.max(...all);
    return [low, high === low ? low + 1 : high];
  };
  const [x0, x1] = span("x"), [y0, y1] = span("y");
  for (const point of figure.points) {
    const x = 24 + ((width - 48) * (point.x - x0)) / (x1 - x0), y = height - 20 - ((height - 40) * (point.y - y0)) / (y1 - y0);
    root.append(shape("circle", { cx: x, cy: y, r: 5.5, fill: CATEGORIES[point.category % CATEGORIES.length], "fill-opacity": 0.9, stroke: colours.card, "data-tip": point.label }));
    if (figure.points.length <= 40) root.append(label(point.label.split(",")[0].replace("head ", ""), x + 8, y + 4, { fill: colours.muted, size: 11 }));
  }
  return root;
}

/** A table of a figure; buttons in its cells send commands. */
function drawTable(page, figure) {
  const head = make("tr", {}, ...figure.columns.map((column) => make("th", { class: column.type, scope: "col" }, column.label)));
  const body = figure.rows.map((row) => make("tr", { class: figure.mark != null && row[0] === figure.mark ? "marked" : "" }, ...row.map((value, i) => tableCell(page, figure.columns[i].type, value))));
  return make("table", { class: "data" }, make("thead", {}, head), make("tbody", {}, ...body));
}

function tableCell(page, type, value) {
  const cell = make("td", { class: type });
  if (value == null) return cell;
  if (type === "token") drawToken(cell, value), cell.classList.add("mono");
  else if (type === "probability") cell.textContent = formatProbability(value);
  else if (type === "number") cell.textContent = Number.isInteger(value) ? String(value) : formatNumber(value);
  else if (type === "signed") (cell.textContent = (value > 0 ? "+" : "") + formatNumber(value)), (cell.style.color = Math.abs(value) < 5e-4 ? "" : colourOf(page, { quantity: "signed", low: -1, high: 1 }, value > 0 ? 0.9 : -0.9).fill);
  else if (type === "link") cell.append(make("a", { href: /^https:\/\//.test(value.href) ? value.href : "#", target: "_blank", rel: "noopener noreferrer" }, value.text));
  else if (type === "do") cell.append(...value.map(({ label: text, about, do: command, ...given }) => make("button", { class: "small", title: about, "data-do": command, onclick: () => page.act(command, given) }, text)));
  else drawToken(cell, String(value)), (cell.title = String(value));
  return cell;
}
