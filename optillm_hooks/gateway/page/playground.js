// One question through several approaches, side by side, streamed.

import { getJson, stream } from "./api.js";
import { button, byId, calls, count, el, pairs, seconds, usd } from "./dom.js";

const MOST = 6;
const TICK_MS = 200;

let known = [];
let chosen = ["none", "self_consistency"];
let running = [];

export function fill(approaches, models) {
  known = approaches;
  byId("known").replaceChildren(...approaches.map((each) => el("option", { value: each.name })));
  const names = models.map((each) => each.id).filter((name) => !name.includes("*"));
  byId("models").replaceChildren(...names.map((name) => el("option", { value: name })));
  byId("model").value ||= names[0] ?? "";
  drawChosen();
}

function drawChosen() {
  byId("chosen").replaceChildren(...chosen.map((expression) =>
    el("li", {}, button(expression, () => remove(expression), {
      class: "chip", "aria-label": `Remove ${expression}`,
    }))));
  const full = chosen.length >= MOST;
  byId("add").disabled = byId("approach").disabled = full;
  byId("estimate").textContent = estimate();
}

// A decoder is one call of a local model, and several of a remote one.
function estimate() {
  if (!chosen.length) return "Add an approach.";
  const found = known.filter((each) => chosen.includes(each.name));
  const least = found.reduce((total, each) => total + each.calls, 0);
  const most = found.reduce((total, each) => total + (each.remote_calls ?? each.calls), 0);
  const sum = least === most ? calls(most) : `${count(least)} to ${calls(most)}`;
  const others = found.length < chosen.length
    ? "Approaches with parameters, and combinations, are not counted." : "";
  return found.length ? `About ${sum} if nothing fails. ${others}` : others;
}

function remove(expression) {
  chosen = chosen.filter((each) => each !== expression);
  drawChosen();
  byId("approach").focus();
}

function add() {
  const expression = byId("approach").value.trim();
  if (expression && !chosen.includes(expression) && chosen.length < MOST) chosen.push(expression);
  byId("approach").value = "";
  drawChosen();
}

byId("add").addEventListener("click", add);
byId("approach").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  add();
});

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running.length) return;
  add();
  const asked = {
    model: byId("model").value.trim(),
    max_tokens: Number(byId("max-tokens").value),
    messages: [{ role: "user", content: byId("question").value }],
  };
  const cards = chosen.map((expression) => new Card(expression));
  byId("answers").replaceChildren(...cards.map((card) => card.node));
  running = cards;
  busy(true);
  await Promise.all(cards.map((card) => card.run(asked)));
  running = [];
  busy(false);
});

byId("stop").addEventListener("click", () => running.forEach((card) => card.stop()));

function busy(yes) {
  byId("run").disabled = yes;
  byId("stop").disabled = !yes;
}

class Card {
  constructor(expression) {
    this.expression = expression;
    this.abort = new AbortController();
    this.state = el("span", { class: "state" }, "waiting");
    this.thinking = el("p", { class: "thinking" });
    this.texts = el("div", { class: "answers" });
    this.choices = [];
    this.facts = el("dl", { class: "facts" });
    this.marks = el("p", { class: "marks" });
    this.stopper = button("Stop", () => this.stop(), {
      class: "quiet small", "aria-label": `Stop ${expression}`,
    });
    this.foot = el("p", { class: "foot" }, this.stopper);
    this.node = el("article", { class: "panel card", "aria-label": expression },
      el("h2", {}, el("code", {}, expression), this.state),
      this.thinking, this.texts, this.marks, this.facts, this.foot);
  }

  stop() {
    this.abort.abort();
  }

  async run(asked) {
    this.began = performance.now();
    this.first = null;
    this.usage = null;
    this.report = null;
    this.ticks = setInterval(() => this.tick(), TICK_MS);
    let end = "done";
    try {
      await stream({ ...asked, optillm_approach: this.expression }, {
        signal: this.abort.signal,
        onId: (id) => { this.id = id; },
        onChunk: (chunk) => this.take(chunk),
      });
    } catch (error) {
      end = error.name === "AbortError" ? "stopped" : "failed";
      if (end === "failed") this.marks.replaceChildren(el("span", { class: "problem" }, error.message));
    }
    clearInterval(this.ticks);
    const cost = this.report ? this.report.cost_usd : await this.plainCost(asked.model);
    this.cost = cost === null ? "–" : usd(cost);
    this.finish(end);
  }

  // What a plain call has cost, by the model's price; null if that is not known.
  async plainCost(model) {
    if (!this.usage) return null;
    try {
      const { usd: price } = await getJson(`optillm/price?model=${encodeURIComponent(model)}`);
      return price && price.prompt * this.usage.prompt_tokens + price.completion * this.usage.completion_tokens;
    } catch {
      return null;
    }
  }

  tick() {
    this.state.textContent = seconds(this.elapsed());
  }

  elapsed() {
    return (performance.now() - this.began) / 1000;
  }

  take(chunk) {
    for (const { index, delta } of chunk.choices ?? []) {
      if (delta.reasoning_content) this.thinking.append(delta.reasoning_content);
      if (!delta.content) continue;
      this.first ??= this.elapsed();
      this.answer(index ?? 0).append(delta.content);
    }
    this.usage = chunk.usage ?? this.usage;
    this.report = chunk.optillm ?? this.report;
  }

  // The text of one choice; they stand in their order, whichever begins first.
  answer(index) {
    while (this.choices.length <= index) {
      this.choices.push(el("p", { class: "answer" }));
      this.texts.append(this.choices.at(-1));
    }
    return this.choices[index];
  }

  finish(end) {
    this.state.textContent = end;
    this.state.classList.add(end);
    this.stopper.remove();
    const { report, usage } = this;
    const made = report ? report.calls : end === "done" ? 1 : null;
    const facts = [
      ["Calls", made === null ? "–" : count(made)],
      ["Tokens", usage ? count(usage.total_tokens) : "–"],
      ["Cost", this.cost],
      ["Time", seconds(this.elapsed())],
    ];
    if (this.first !== null) facts.push(["First token", seconds(this.first)]);
    if (report?.calls_saved) facts.push(["Calls saved", count(report.calls_saved)]);
    this.facts.replaceChildren(...pairs(facts));
    if (report?.stopped_by) this.marks.append(el("span", { class: "mark" }, `stopped by ${report.stopped_by}`));
    for (const loss of report?.degraded ?? []) this.marks.append(el("span", { class: "mark" }, loss));
    if (end === "done" && !report) {
      this.foot.append(el("span", { class: "hint" }, "A plain call: LiteLLM bills it, and says so in its logs."));
    } else if (this.id && end !== "failed") {
      this.foot.append(el("a", { href: `#plans/${encodeURIComponent(this.id)}` }, "How it was made"));
    }
    if (!this.texts.textContent && end === "done") this.answer(0).append("(an empty answer)");
    const spent = made === null ? "" : `, ${calls(made)}`;
    byId("said").textContent = `${this.expression}: ${end} after ${seconds(this.elapsed())}${spent}.`;
  }
}
