// One conversation, turn by turn: what the model wrote in the colours of its entropy, each call with what was decided
// and why, and what would have been otherwise.
import { Chart, colour } from "./charts.js";
import { badge, empty, h, say } from "./dom.js";
import { count, moment, nats, number, percent, seconds, signed, time, words } from "./format.js";

const LEVELS = [0.02, 0.1, 0.3, 0.6, 1, 1.5, 2.2];

/** Which of the eight colours an entropy has. */
const level = (entropy) => LEVELS.filter((edge) => entropy >= edge).length;

async function make(context, root) {
  const name = context.argument;
  const data = await context.ask(`conversation/${encodeURIComponent(name)}`);
  context.heading(`Conversation ${name}`);
  const calls = data.turns.flatMap((turn) => turn.calls);
  const told = data.turns.some((turn) => turn.transcript);
  const last = data.turns.at(-1);
  const facts = [
    ["Arm", data.arm === "holdout" ? "held out" : data.arm || "–"],
    ["Model", data.model || "–"],
    ["Calls", `${count(calls.length)}, ${count(calls.filter((call) => !call.passed).length)} withheld`],
    ["Began", moment(data.turns[0].created)],
    ["Lasted", seconds(last.created - data.turns[0].created)],
    ["Score", data.score === null ? "not told" : percent(data.score, 0)],
  ];
  const box = h("div.chart.path", { role: "img" });
  const readout = h("p.readout", { "aria-hidden": "true" });
  const copied = h("span.note", { role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      say(copied, "Copied.");
    } catch {
      say(copied, "Copy the address of this page.");
    }
  };
  const parts = [
    h("p.row", h("a.back", { href: "#/conversations" }, "‹ All conversations"), h("span", h("button.plain", { type: "button", onclick: copy }, "Copy link"), " ", copied)),
    h("section.card", { "aria-label": "In short" }, h("dl.pairs", facts.map(([key, value]) => h("div", h("dt", key), h("dd", value))))),
    h("section.card", { "aria-labelledby": "path" }, h("h2", { id: "path" }, "Entropy along the conversation"), box, readout, scale()),
    told ? null : h("p.note.box", "Only figures are kept of this conversation. With ", h("code", "store.keep_conversations: true"), " the next ones show every token and text."),
    h("ol.turns", data.turns.map((turn, place) => h("li", turned(turn, place, data)))),
  ];
  root.replaceChildren(...parts.filter(Boolean));
  draw(box, readout, data);
  return {};
}

/** What the colours mean. */
function scale() {
  const names = [`below ${number(LEVELS[0], 2)}`, ...LEVELS.map((edge) => `${number(edge, edge < 0.1 ? 2 : 1)} or more`)];
  return h("p.scale", h("span", "Entropy of a token, in nats:"), names.map((name, place) => h(`span.t.e${place}`, name)));
}

/** Every token, or the means of the turns where no tokens are kept. */
function draw(box, readout, data) {
  const tokens = data.turns.flatMap((turn, place) => (turn.transcript?.tokens ?? []).map(([text, entropy, kind]) => ({ text, entropy, kind, place })));
  const means = data.turns.flatMap((turn, place) => turn.calls.flatMap((call) => [[place + 1, call.entropy_before, call.entropy_after]])).filter(([, before]) => before !== null);
  const axes = (label) => [{ size: 26, values: (_, all) => all.map((at) => (Number.isInteger(at) ? count(at) : "")), label, labelSize: 18, labelFont: "12px system-ui, sans-serif" }, { size: 44, values: (_, all) => all.map((at) => number(at, 1)) }];
  const y = { range: (_, __, most) => [0, Math.max(0.5, (most ?? 0) * 1.05)] };
  if (tokens.length) {
    const chart = new Chart(box, () => ({
      axes: axes("token"),
      scales: { x: { time: false }, y },
      series: [{}, { stroke: colour("accent"), width: 1.5, fill: colour("accent-soft"), points: { show: false } }],
      hooks: { setCursor: [(plot) => say(readout, plot.cursor.idx === null ? "" : `turn ${tokens[plot.cursor.idx].place + 1}, ${words(tokens[plot.cursor.idx].kind)}: “${tokens[plot.cursor.idx].text.trim()}” ${nats(tokens[plot.cursor.idx].entropy)}`)] },
    }), 160);
    chart.show([tokens.map((_, at) => at), tokens.map((token) => token.entropy)]);
    box.setAttribute("aria-label", `Entropy of ${count(tokens.length)} tokens in ${count(data.turns.length)} turns; highest ${nats(Math.max(...tokens.map((token) => token.entropy)))}.`);
  } else if (means.length) {
    const at = means.map(([place]) => place);
    const chart = new Chart(box, () => ({
      axes: axes("turn"),
      scales: { x: { time: false, range: [0.5, Math.max(...at) + 0.5] }, y },
      series: [{}, { stroke: colour("passed"), width: 2, points: { show: true, size: 8, fill: colour("passed") } }, { stroke: colour("pruned"), width: 2, dash: [4, 4], points: { show: true, size: 8, fill: colour("pruned") } }],
    }), 160);
    chart.show([at, means.map(([, before]) => before), means.map(([, , after]) => after)]);
    box.setAttribute("aria-label", `Mean entropy before each call and after its result: ${means.map(([place, before, after]) => `turn ${place} ${number(before)} and ${number(after)}`).join(", ")}.`);
    say(readout, "solid: before the call; dashed: after its result");
  } else {
    box.replaceChildren(empty("No entropy was measured.", "Upstream sent no logprobs: governor doctor says why."));
  }
}

function turned(turn, place, data) {
  const said = turn.transcript;
  return h(
    "article.turn",
    { "aria-labelledby": `turn-${place}` },
    h("h2", { id: `turn-${place}` }, `Turn ${place + 1}`, h("span.note", ` ${time(turn.created)}${turn.entropy === null ? "" : ` · mean entropy ${nats(turn.entropy)}`}`)),
    said ? [...said.said.map(message), h("div.message.model", h("h3", "Model"), written(said))] : [],
    turn.calls.map((call) => decided(call, data)),
  );
}

/** A message of the client's, as it was sent. */
function message(one) {
  const text = typeof one.content === "string" ? one.content : one.content ? JSON.stringify(one.content, null, 1) : "";
  const calls = (one.tool_calls ?? []).map((call) => `${call.function?.name}(${call.function?.arguments ?? ""})`).join("\n");
  const role = { tool: "Result", user: "User", system: "System", assistant: "Model, earlier" }[one.role] ?? words(one.role);
  const shown = [text, calls].filter(Boolean).join("\n");
  const long = shown.length > 1200;
  return h(`div.message.${String(one.role).replace(/\W/g, "")}`, h("h3", role), long ? h("details", h("summary", `${shown.slice(0, 160)}…`), h("pre", shown)) : h("pre", shown || "(nothing)"));
}

/** What the model wrote, in colour; without colours where upstream told no logprobs. */
function written(said) {
  if (!said.tokens.length) {
    const reply = said.proposal ?? said.reply;
    return h("pre", reply.content || (reply.tool_calls ?? []).map((call) => `${call.function.name}(${call.function.arguments})`).join("\n") || "(nothing)");
  }
  return h("pre.tokens", said.tokens.map(([text, entropy, kind]) => h(`span.t.e${level(entropy)}${kind === "template" ? ".mark" : ""}`, { title: `${words(kind)}: ${number(entropy, 3)} nats` }, text)));
}

function decided(call, data) {
  const decision = call.decision;
  const fate = !call.passed ? ["withheld", decision.action === "answer" ? "withheld: answered" : decision.action === "notice" ? "withheld: notice" : "withheld: left out"] : decision.proposed !== "pass" ? ["spared", call.explored ? "passed: explored" : "passed against the policy"] : ["passed", "passed"];
  const pairs = [
    ["Entropy before → after", call.entropy_before === null ? "not measured" : `${number(call.entropy_before)} → ${call.entropy_after === null ? "–" : number(call.entropy_after)} nats`, call.entropy_reduction === null ? "" : `reduction ${signed(call.entropy_reduction)}`],
    ["Worth", call.label ? words(call.label) : "no label", call.gain === null ? "" : `gain ${signed(call.gain)} nats`],
    ["Round trip", call.returned === null ? "–" : seconds(call.returned - call.created), call.outcome && call.outcome !== "ok" ? words(call.outcome) : ""],
  ];
  return h(
    `section.call.${fate[0]}`,
    { "aria-label": `Call of ${call.tool}` },
    h("header", h("h3", h("code", call.tool)), badge(fate[0], fate[1]), call.stub ? badge("pruned", `pruned: ${words(call.stub)}`) : null),
    decision.arguments ? h("pre.arguments", decision.arguments) : null,
    h("p", decision.explanation ?? `${words(decision.action)}: ${words(decision.reason)}`),
    call.counterfactual ? h("p.counter", h("strong", "Otherwise: "), call.counterfactual) : null,
    h("dl.pairs", pairs.map(([key, value, more]) => h("div", h("dt", key), h("dd", value, more ? h("small", ` ${more}`) : null)))),
    call.probe_before || call.probe_after ? h("div.probes", probed("Forced answer before", call.probe_before, data), probed("Forced answer after", call.probe_after, data)) : null,
    h("details", h("summary", "All figures"), figures("What the policy looked at", decision.inputs), figures("Signals", call.signals), h("dl.pairs", [["Reason", words(decision.reason)], ["Policy", decision.policy ?? "–"], ["Tier", decision.tier ?? "–"], ["Rule", call.rule ? words(call.rule) : "none"], ["Effect of the tool", words(call.effect) || "unknown"], ["Call", call.call_id]].map(([key, value]) => h("div", h("dt", key), h("dd", String(value)))))),
  );
}

function probed(title, probe, data) {
  if (!probe) return h("div.probe", h("h4", title), h("p.note", "not asked"));
  return h(
    "div.probe",
    h("h4", title),
    probe.text ? h("blockquote", probe.text) : h("p.note", data.keep_text ? "(empty)" : "The text is not kept (store.keep_text)."),
    h("p.note", `entropy ${number(probe.mean_entropy)} mean, ${number(probe.max_entropy)} at most · least margin ${number(probe.least_margin)} · ${count(probe.tokens)} tokens${probe.finished ? "" : ", unfinished"}`),
  );
}

function figures(title, values) {
  const known = Object.entries(values ?? {}).filter(([, value]) => value !== null);
  if (!known.length) return null;
  return h("div", h("h4", title), h("dl.pairs", known.map(([key, value]) => h("div", h("dt", words(key)), h("dd", typeof value === "number" && !Number.isInteger(value) ? number(value, 3) : String(value))))));
}

export const inspector = { title: "Conversation", make };
