// Elements and numbers. Texts become text nodes, never markup: answers of models are data.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const el = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

export function button(text, onClick, attributes = {}) {
  const made = el("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", onClick);
  return made;
}

// Each row is a list of cells. On a phone, a cell stands behind its column's name.
export function table(caption, columns, rows) {
  const cells = (row) =>
    row.map((cell, at) =>
      el(at ? "td" : "th", { "data-column": columns[at], scope: at ? null : "row" }, cell));
  return el("table", {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row)))));
}

export const pairs = (entries) =>
  entries.flatMap(([name, value]) => [el("div", {}, el("dt", {}, name), el("dd", {}, value))]);

const whole = new Intl.NumberFormat("en");
export const count = (number) => whole.format(number);
export const seconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(1)} s`;

const dollars = new Intl.NumberFormat("en", {
  style: "currency", currency: "USD", minimumFractionDigits: 0, maximumSignificantDigits: 3,
});
export const usd = (value) => dollars.format(value);

export const calls = (number) => `${count(number)} ${number === 1 ? "call" : "calls"}`;
