// What the proxy has done so far: our series of /metrics, summed by approach and model.

import { getJson } from "./api.js";
import { byId, count, el, pairs, seconds, table, usd } from "./dom.js";

const EVERY_MS = 5000;
let timer = null;

export function pause() {
  clearTimeout(timer);
  timer = null;
}

export async function show() {
  pause();
  try {
    draw((await getJson("optillm/counters")).data);
    say("");
  } catch (error) {
    say(error.status === 403
      ? "Only an admin of the proxy sees its counters. Your own requests are under Replay."
      : error.message);
    if (error.status === 403) return;
  }
  // The section may have been left while the proxy answered.
  if (!byId("counters").hidden && timer === null) timer = setTimeout(show, EVERY_MS);
}

function say(text) {
  byId("counters-problem").textContent = text;
  byId("counters-problem").hidden = !text;
}

function draw(samples) {
  const sum = (name, having = {}) =>
    samples
      .filter((each) => each.name === name && matches(each.labels, having))
      .reduce((total, each) => total + each.value, 0);
  byId("totals").replaceChildren(...pairs([
    ["Requests", count(sum("optillm_requests_total"))],
    ["Model calls", count(sum("optillm_calls_total"))],
    ["Calls saved", count(sum("optillm_calls_saved_total"))],
    ["Tokens", count(sum("optillm_tokens_total"))],
    ["Cost", usd(sum("optillm_cost_usd_total"))],
  ]));
  const kinds = new Map(
    samples
      .filter((each) => each.name === "optillm_requests_total")
      .map(({ labels: { approach, model_group } }) =>
        [JSON.stringify([approach, model_group]), { approach, model_group }]));
  const rows = [...kinds.values()].map((kind) => {
    const requests = sum("optillm_requests_total", kind);
    const ran = sum("optillm_request_seconds_count", kind);
    return [
      el("code", {}, kind.approach),
      kind.model_group,
      count(requests),
      `${Math.round((100 * sum("optillm_requests_total", { ...kind, outcome: "ok" })) / requests)} %`,
      seconds(ran ? sum("optillm_request_seconds_sum", kind) / ran : 0),
      usd(sum("optillm_cost_usd_total", kind)),
    ];
  });
  const columns = ["Approach", "Model", "Requests", "Complete", "Mean time", "Cost"];
  byId("series").replaceChildren(rows.length
    ? table("By approach and base model", columns, rows)
    : el("p", { class: "notice" }, "No request has run a plan yet."));
}

const matches = (labels, having) =>
  Object.entries(having).every(([name, value]) => labels[name] === value);

document.addEventListener("visibilitychange", () => {
  if (document.hidden) pause();
  else if (!byId("counters").hidden) show();
});
