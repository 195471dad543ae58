// The list of approaches with their parameters.

import { byId, count, el, pairs, table } from "./dom.js";

let all = [];

export function fill(data) {
  all = data;
  draw();
}

function draw() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = all.filter((each) => {
    const text = [each.name, each.kind, each.summary, each.good_for, each.worth_it_when].join(" ");
    return words.every((word) => text.toLowerCase().includes(word));
  });
  byId("found").textContent = `${count(found.length)} of ${count(all.length)}`;
  byId("approach-list").replaceChildren(...groups(found));
}

function groups(found) {
  const names = [...new Set(found.map((each) => each.good_for || "others"))].sort();
  return names.flatMap((name) => [
    el("h2", {}, name[0].toUpperCase() + name.slice(1)),
    ...found.filter((each) => (each.good_for || "others") === name).map(card),
  ]);
}

function card(approach) {
  const remote = approach.remote_calls ? ` (remote: ${approach.remote_calls})` : "";
  const facts = [
    ["Calls", `${approach.calls}${remote}`],
    ["Depth", String(approach.depth)],
    ["Kind", approach.kind],
  ];
  if (approach.needs.length) facts.push(["Needs", approach.needs.join(", ")]);
  return el("article", { class: "panel approach" },
    el("h3", {}, el("code", {}, approach.name)),
    el("p", {}, sentence(approach.summary)),
    approach.worth_it_when ? el("p", { class: "hint" }, `Worth it when ${approach.worth_it_when}.`) : null,
    el("dl", { class: "facts" }, ...pairs(facts)),
    parameters(approach));
}

function sentence(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : "";
}

function parameters(approach) {
  if (!approach.parameters.length) return el("p", { class: "hint" }, "No parameters.");
  const rows = approach.parameters.map((each) => [
    el("code", {}, each.name), each.type, el("code", {}, each.default), each.bounds || "–", each.description,
  ]);
  return el("details", {},
    el("summary", {}, `Parameters (${rows.length})`),
    table(`Parameters of ${approach.name}`, ["Name", "Type", "Default", "Bounds", "Meaning"], rows));
}

byId("filter").addEventListener("input", draw);
