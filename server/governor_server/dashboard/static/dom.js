// Making elements. Texts are always text: what a model wrote never becomes markup.

/** An element: `h("p.note", {title: "…"}, "text", child)`. A handler is `onclick: f`. */
export function h(kind, ...rest) {
  const [name, ...classes] = kind.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  return filled(element, rest);
}

/** The same for SVG. */
export function s(kind, ...rest) {
  const [name, ...classes] = kind.split(".");
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  return filled(element, rest);
}

function filled(element, rest) {
  const given = rest[0];
  const has = given && typeof given === "object" && !Array.isArray(given) && !(given instanceof Node);
  for (const [key, value] of Object.entries(has ? given : {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...(has ? rest.slice(1) : rest).flat(2).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Put a text where another one stands; the same one is left alone, so that nothing is read out twice. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A card with a heading; `id` names the heading. */
export function card(id, title, ...children) {
  return h("section.card", { "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

/** What stands where there is nothing yet: what is missing, and what to do. */
export function empty(title, ...lines) {
  return h("div.empty", h("p", h("strong", title)), ...lines.map((line) => h("p", line)));
}

/** A table that becomes a list of cards on a phone. `columns`: [{name, of(row) → child or text, right, head,
 *  wide, minor}]; the minor ones are not on a phone. */
export function table(label, columns, rows, options = {}) {
  const cell = (column, row) => {
    const made = column.of(row);
    const kind = column.head ? "th" : "td";
    const classes = [column.right && "right", column.wide && "wide", column.minor && "minor"].filter(Boolean).join(" ");
    return h(kind, { "data-label": column.name, class: classes || null, scope: column.head ? "row" : null }, ...[made ?? "–"].flat());
  };
  return h(
    "div.scroll",
    { tabindex: "0", role: "region", "aria-label": label },
    h(
      "table.cards",
      h("caption.hidden", label),
      h("thead", h("tr", columns.map((column) => options.heading?.(column) ?? h("th", { scope: "col", class: column.right ? "right" : null }, column.name)))),
      h("tbody", rows.map((row) => h("tr", columns.map((column) => cell(column, row))))),
    ),
  );
}

/** A word in a coloured frame; the word says it all, the colour only helps. */
export function badge(kind, text) {
  return h(`span.badge.${kind}`, text);
}
