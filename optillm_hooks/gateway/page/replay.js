// How an answer was made: stages and calls on a time axis, votes and ratings, cost by stage.

import { getJson } from "./api.js";
import { byId, calls, count, el, pairs, seconds, svg, table, usd } from "./dom.js";

const BAR = 14;
const GAP = 4;
const LABEL = 20;
const AXIS = 26;
const PURPOSES = {
  answer: "answer", solution: "solution", draft: "intermediate step", judge: "judgement", piece: "piece",
};

let shown = null;

export async function show(id) {
  shown = id;
  byId("plan-list").hidden = id !== null;
  byId("plan").hidden = id === null;
  if (id === null) await list();
  else await one(id);
}

byId("reload").addEventListener("click", list);

async function list() {
  try {
    const plans = (await getJson("optillm/plans")).data;
    byId("plan-rows").replaceChildren(plans.length ? rows(plans) : el("p", { class: "notice" },
      "Nothing yet: run something in the playground. Each worker of the proxy keeps its own."));
  } catch (error) {
    byId("plan-rows").replaceChildren(el("p", { class: "problem", role: "alert" }, error.message));
  }
}

function rows(plans) {
  const columns = ["Approach", "Model", "Ended", "Outcome", "Calls", "Time", "Cost"];
  return table("Requests, the latest first", columns, plans.map((plan) => [
    el("a", { href: `#plans/${encodeURIComponent(plan.id)}` }, el("code", {}, plan.approach)),
    plan.base_model,
    new Date(plan.ended_at * 1000).toLocaleTimeString(),
    outcome(plan),
    count(plan.calls),
    seconds(plan.seconds),
    usd(plan.cost_usd),
  ]));
}

function outcome(plan) {
  if (plan.error === "cancelled") return "cancelled";
  if (plan.error) return `failed: ${plan.error}`;
  if (plan.stopped_by) return `stopped by ${plan.stopped_by}`;
  return plan.degraded.length ? "with losses" : "complete";
}

async function one(id) {
  const back = el("p", {}, el("a", { href: "#plans" }, "All requests"));
  let plan;
  try {
    plan = await getJson(`optillm/plans/${encodeURIComponent(id)}`);
  } catch (error) {
    const text = error.status === 404
      ? "This worker of the proxy does not keep that request: it is too old, another key's, or ran in another worker."
      : error.message;
    byId("plan").replaceChildren(back, el("p", { class: "notice", role: "alert" }, text));
    return;
  }
  if (shown !== id) return;
  const axis = el("div", { class: "axis" });
  byId("plan").replaceChildren(
    back, heading(plan), texts(plan),
    el("h3", {}, "Stages and calls"), legend(), axis,
    el("h3", {}, "Candidates and decisions"), ...decisions(plan),
    el("h3", {}, "Cost by stage"), costs(plan), everyCall(plan));
  new ResizeObserver(([entry]) => {
    axis.replaceChildren(timeline(plan, Math.max(entry.contentRect.width, 100)));
  }).observe(axis);
}

function heading(plan) {
  const facts = [
    ["Outcome", outcome(plan)], ["Time", seconds(plan.seconds)], ["Calls", count(plan.calls)],
    ["Depth", count(plan.depth)], ["Calls saved", count(plan.calls_saved)],
    ["Tokens", count(plan.prompt_tokens + plan.completion_tokens)], ["Cost", usd(plan.cost_usd)],
  ];
  return el("div", {},
    el("h2", {}, el("code", {}, plan.approach), ` on ${plan.base_model}`),
    el("dl", { class: "tiles" }, ...pairs(facts)),
    plan.degraded.length
      ? el("p", { class: "marks" }, ...plan.degraded.map((loss) => el("span", { class: "mark" }, loss)))
      : null);
}

function texts(plan) {
  if (!plan.texts) return el("p", { class: "hint" }, "Question and answer are not kept.");
  const answers = plan.texts.answers.map((text, at) =>
    el("blockquote", {}, el("p", { class: "who" }, `Answer${plan.texts.answers.length > 1 ? ` ${at + 1}` : ""}`),
      el("p", { class: "answer" }, text)));
  return el("div", { class: "panel" },
    el("blockquote", {}, el("p", { class: "who" }, "Question"), el("p", { class: "answer" }, plan.texts.question)),
    ...answers);
}

function legend() {
  const entry = (kind, text) =>
    el("li", {}, svg("svg", { width: 14, height: 14, "aria-hidden": "true" },
      svg("rect", { class: `call ${kind}`, x: 1, y: 1, width: 12, height: 12, rx: 3 })), text);
  return el("ul", { class: "legend" },
    entry("answer", "answers"), entry("draft", "steps"), entry("judge", "judgements"),
    entry("failed", "failed"), entry("cancelled", "cancelled"));
}

// Bars that do not overlap share a lane.
function lanes(bars) {
  const ends = [];
  return bars.map((bar) => {
    const free = ends.findIndex((end) => end <= bar.started_s);
    const lane = free < 0 ? ends.length : free;
    ends[lane] = bar.started_s + bar.seconds;
    return lane;
  });
}

function blocks(plan) {
  const made = plan.stages.map((stage, at) => ({
    stage, calls: plan.model_calls.filter((call) => call.stage === at),
  }));
  const others = plan.model_calls.filter((call) => call.stage === null);
  if (others.length) made.push({ stage: null, calls: others });
  return made.map((block) => ({ ...block, calls: [...block.calls].sort((a, b) => a.started_s - b.started_s) }));
}

function title(plan, { stage, calls: made }) {
  const run = Math.max(...plan.stages.map((each) => each.run), 0) > 0 && stage ? ` #${stage.run + 1}` : "";
  const name = stage ? stage.name + run : "beside the stages";
  const took = stage ? `, ${seconds(stage.seconds)}` : "";
  const end = stage && stage.outcome !== "ok" ? `, ${stage.outcome}` : "";
  return `${name}: ${calls(made.reduce((sum, call) => sum + call.choices, 0))}${took}${end}`;
}

function timeline(plan, width) {
  const longest = Math.max(plan.seconds, ...plan.model_calls.map((call) => call.started_s + call.seconds), 0.001);
  const x = (time) => (Math.max(time, 0) / longest) * (width - 2) + 1;
  const marks = [];
  let y = 4;
  for (const block of blocks(plan)) {
    const lane = lanes(block.calls);
    const height = lane.length ? (Math.max(...lane) + 1) * (BAR + GAP) + GAP : GAP;
    const from = block.stage ? block.stage.started_s : 0;
    const length = block.stage ? block.stage.seconds : longest;
    marks.push(
      svg("text", { class: "stage-name", x: 1, y: y + 13 }, title(plan, block)),
      svg("rect", { class: "track", x: x(from), y: y + LABEL, width: Math.max(x(from + length) - x(from), 2), height, rx: 5 }),
      ...block.calls.map((call, at) => svg("rect", {
        class: `call ${call.purpose} ${call.outcome}`,
        x: x(call.started_s), y: y + LABEL + GAP + lane[at] * (BAR + GAP),
        width: Math.max(x(call.started_s + call.seconds) - x(call.started_s), 3), height: BAR, rx: 3,
      }, svg("title", {}, described(call)))));
    y += LABEL + height + 10;
  }
  const ticks = width < 480 ? 2 : 4;
  for (let tick = 0; tick <= ticks; tick += 1) {
    const time = (longest * tick) / ticks;
    const anchor = tick === 0 ? "start" : tick === ticks ? "end" : "middle";
    marks.unshift(svg("line", { class: "grid", x1: x(time), x2: x(time), y1: 0, y2: y }));
    marks.push(svg("text", { class: "tick", x: x(time), y: y + 16, "text-anchor": anchor }, seconds(time)));
  }
  const summary = blocks(plan).map((block) => title(plan, block)).join("; ");
  return svg("svg", {
    width, height: y + AXIS, role: "img", "aria-label": `Timeline of ${seconds(longest)}. ${summary}. The table below has every call.`,
  }, ...marks);
}

function described(call) {
  const replies = call.choices > 1 ? ` of ${call.choices} replies` : "";
  return `${PURPOSES[call.purpose] ?? call.purpose}${replies} by ${call.model}: ${call.outcome}, ` +
    `${seconds(call.seconds)}, ${count(call.completion_tokens)} tokens written, ${usd(call.cost_usd)}`;
}

const LISTS = { votes: "votes", ratings: "rating", scores: "score" };
const CAPTIONS = {
  votes: "Votes, by answer", ratings: "Ratings, equal candidates once", scores: "Scores of the candidates",
};

function decisions(plan) {
  const found = plan.notes.flatMap((note) =>
    Object.keys(LISTS)
      .filter((name) => Array.isArray(note[name]) && !note[name].some(Array.isArray))
      .map((name) => boxes(note, name)));
  const others = plan.notes.length ? [noteList(plan.notes)] : [];
  if (found.length) return [...found, ...others];
  return [el("p", { class: "hint" }, "No votes and no ratings."), ...others];
}

function boxes(note, name) {
  const values = note[name];
  const best = Math.max(...values.filter((value) => typeof value === "number"));
  const winner = typeof note.winner === "number" ? note.winner : null;
  const first = values.indexOf(best);
  const what = name === "votes" ? "Answer" : "Candidate";
  const items = values.map((value, at) => {
    const leads = winner === null ? at === first : at === winner;
    const flag = winner !== null ? "won" : name === "votes" ? "most votes" : "rated highest";
    return el("li", { class: leads ? "box best" : "box" },
      el("span", { class: "who" }, `${what} ${at + 1}`),
      el("strong", {}, value === null ? "–" : String(value)),
      el("span", { class: "hint" }, value === 1 && name === "votes" ? "vote" : LISTS[name]),
      leads ? el("span", { class: "flag" }, flag) : null);
  });
  return el("div", {},
    el("p", { class: "who" }, CAPTIONS[name]),
    items.length ? el("ul", { class: "boxes" }, ...items)
      : el("p", { class: "hint" }, "None could be read."));
}

function noteList(notes) {
  return el("details", {}, el("summary", {}, `All notes (${notes.length})`),
    el("dl", { class: "notes" }, ...pairs(notes.map(({ name, ...facts }) =>
      [name, Object.entries(facts).map(([key, value]) => `${key}: ${plain(value)}`).join(", ")]))));
}

const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function costs(plan) {
  const sum = (made, name) => made.reduce((total, call) => total + call[name], 0);
  const rows = blocks(plan).map((block) => [
    el("code", {}, block.stage ? block.stage.name : "–"),
    count(block.calls.length),
    count(sum(block.calls, "prompt_tokens")),
    count(sum(block.calls, "completion_tokens")),
    usd(sum(block.calls, "cost_usd")),
    block.stage ? seconds(block.stage.seconds) : "–",
  ]);
  return table("What each stage spent", ["Stage", "Requests", "Tokens read", "Tokens written", "Cost", "Time"], rows);
}

function everyCall(plan) {
  const rows = plan.model_calls.map((call) => [
    PURPOSES[call.purpose] ?? call.purpose, call.model, call.outcome, count(call.choices),
    seconds(call.started_s), seconds(call.seconds), count(call.completion_tokens), usd(call.cost_usd),
  ]);
  const columns = ["Purpose", "Model", "Outcome", "Replies", "Began at", "Took", "Tokens written", "Cost"];
  return el("details", {}, el("summary", {}, `Every call (${rows.length})`), table("Every call", columns, rows));
}
