// The overview: what became of the calls, what it saved, what it may have cost, and how the proxy is.
import { Chart, bars, colour, interval, legend, meter, sparkline, told } from "./charts.js";
import { badge, card, empty, h, say, table } from "./dom.js";
import { count, day, hour, moment, money, number, percent, seconds, short, signed, time, words } from "./format.js";

const MEASURES = [
  ["calls", "Tool calls", (value) => number(value, 2), (value) => short(Math.round(value))],
  ["seconds", "Seconds of waiting", (value) => seconds(value), (value) => seconds(value)],
  ["tokens", "Tokens of the agent's requests", (value) => short(Math.round(value)), (value) => short(Math.round(value))],
  ["own_tokens", "The governor's own tokens", (value) => short(Math.round(value)), (value) => short(Math.round(value))],
];

function make(context, root) {
  const facts = new Map();
  const fact = (key, name, note) => {
    const value = h("dd.figure", "–");
    const small = h("dd.note", note ?? "");
    facts.set(key, { value, small });
    return h(`div.fact.${key}`, h("dt", name), value, small);
  };
  const sentence = h("p.lead", "Reading the records…");
  const spark = h("div.spark-box");
  const rate = h("span.note");
  const readout = h("p.readout", { "aria-hidden": "true" });
  const box = h("div.chart", { role: "img" });
  const boxes = Object.fromEntries(["saved", "harm", "overhead", "health"].map((name) => [name, h("div")]));
  const whole = h(
    "div.overview",
    sentence,
    h("dl.facts", fact("proposed", "Calls proposed"), fact("passed", "Passed"), fact("withheld", "Withheld"), fact("spared", "Passed against the policy", "observed, held out or explored"), fact("pruned", "Results pruned")),
    card("over-time", "Calls over time", h("div.row", legend([["passed", "passed"], ["withheld", "withheld"]]), h("div.now", spark, rate)), box, readout),
    card("saved", "Saved: governed conversations against the holdout", boxes.saved),
    h("div.columns", card("harm", "Harm certificate", boxes.harm), card("overhead", "The governor's overhead", boxes.overhead), card("health", "Health", boxes.health)),
  );
  let chart = null;
  let shown = { saved: "", harm: "", health: "" };
  let times = [];

  /** Made anew only when it says something else, so that a reader keeps the place. */
  const fresh = (name, data, build) => {
    const key = JSON.stringify(data);
    if (shown[name] === key) return;
    shown[name] = key;
    boxes[name].replaceChildren(...[build()].flat());
  };

  function tick(data) {
    const { total } = data;
    if (!total.calls) {
      if (!root.contains(whole) || whole.hidden !== true) {
        whole.hidden = true;
        root.replaceChildren(nothing(), whole);
      }
      return;
    }
    if (whole.hidden || !root.contains(whole)) {
      whole.hidden = false;
      root.replaceChildren(whole);
      chart?.end();
      chart = new Chart(box, options);
    }
    say(sentence, lead(data));
    const put = (key, value, note) => {
      say(facts.get(key).value, value);
      if (note !== undefined) say(facts.get(key).small, note);
    };
    put("proposed", count(total.calls), `in ${count(data.conversations)} conversations since ${moment(data.since)}`);
    put("passed", count(total.passed), percent(total.passed / total.calls));
    put("withheld", count(total.withheld), total.governed ? `${percent(total.withheld / total.governed)} of ${short(total.governed)} governed` : "nothing is governed");
    put("spared", count(total.spared));
    put("pruned", count(total.pruned), data.health.pruned_tokens ? `${short(data.health.pruned_tokens)} tokens saved, ${short(data.health.recomputed_tokens)} computed again` : "stubs in place of results");

    const lately = data.lately.slice(-10);
    const pace = lately.reduce((a, b) => a + b, 0) / lately.length;
    spark.replaceChildren(sparkline(data.lately, `Calls in each second of the last minute, ${number(pace, 1)} a second now`));
    say(rate, `${number(pace, 1)} calls/s`);
    const line = data.timeline;
    times = line.times;
    const both = line.passed.map((many, place) => many + line.withheld[place]);
    chart.show([line.times, both, line.withheld]);
    box.setAttribute("aria-label", `Calls in columns of ${seconds(line.step)}: ${count(total.passed)} passed and ${count(total.withheld)} withheld from ${moment(line.times[0])} on; at most ${count(Math.max(...both))} in one column.`);

    fresh("saved", [data.saved, data.effect, data.priced, data.currency], () => saved(data));
    fresh("harm", [data.gates, data.policy, data.mode], () => harm(data));
    fresh("overhead", data.health.overhead, () => overhead(data.health.overhead));
    fresh("health", [data.health, total.measured, total.calls], () => health(data));
  }

  const options = () => ({
    axes: [{ size: 30, space: 96, values: (_, all) => all.map((at) => axisTime(at, all)) }, { size: 44, values: (_, all) => all.map(short) }],
    scales: { x: { time: true }, y: { range: (_, __, most) => [0, Math.max(1, most * 1.08)] } },
    series: [
      {},
      { label: "passed", fill: colour("passed"), stroke: colour("passed"), width: 0, paths: bars(), points: { show: false } },
      { label: "withheld", fill: colour("withheld"), stroke: colour("withheld"), width: 0, paths: bars(), points: { show: false } },
    ],
    hooks: {
      setCursor: [
        (plot) => {
          const at = plot.cursor.idx;
          say(readout, at === null || at === undefined ? "" : `${times.length && times[1] - times[0] < 3600 ? time(plot.data[0][at]) : moment(plot.data[0][at])}: ${count(plot.data[1][at] - plot.data[2][at])} passed, ${count(plot.data[2][at])} withheld`);
        },
      ],
    },
  });

  return context.ask("overview").then((data) => {
    if (context.current()) tick(data);
    return { tick };
  });
}

/** Hours and minutes, with seconds or the day where the columns need them. */
function axisTime(at, all) {
  const step = all.length > 1 ? all[1] - all[0] : 60;
  if (step >= 86400) return day(at);
  return step >= 60 ? hour(at) : time(at);
}

function nothing() {
  return empty(
    "No tool call has been recorded yet.",
    h("span", "Point an agent at this proxy: its ", h("code", "base_url"), " is ", h("code", `${location.origin}${location.pathname.replace(/\/dashboard\/?$/, "")}/v1`), "."),
    "Calls appear here as they are proposed. Nothing is withheld while the mode is observe.",
  );
}

function lead(data) {
  const { total } = data;
  const what = total.withheld
    ? `The governor withheld ${count(total.withheld)} of ${count(total.calls)} tool calls (${percent(total.withheld / total.calls)}).`
    : `The governor only observed: it would have withheld ${count(total.spared)} of ${count(total.calls)} tool calls (${percent(total.spared / total.calls)}).`;
  const compared = data.effect.governed.conversations ? ` ${data.effect.sentence}` : "";
  return what + compared;
}

function saved(data) {
  const { effect } = data;
  if (!effect.governed.conversations)
    return empty("Nothing is governed, so nothing is saved yet.", h("span", "In mode ", h("code", "observe"), " calls are only measured. ", h("a", { href: "#/what-if" }, "What if"), " shows what would have been saved; ", h("code", "governance.mode: enforce"), " acts."));
  if (!effect.holdout.conversations)
    return empty("There is nothing to compare with.", h("span", "No conversation was held out yet. ", h("code", "experiment.holdout"), ` is ${percent(data.holdout, 0)} of the conversations.`));
  const rows = MEASURES.map(([key, name, form, sum]) => ({ key, name, form, sum, ...data.saved[key] }));
  if (data.priced) rows.push({ key: "money", name: "Money", form: (value) => money(value, data.currency), sum: (value) => money(value, data.currency), ...data.saved.money });
  const columns = [
    { name: "A conversation's", head: true, of: (row) => row.name },
    { name: "Governed", right: true, of: (row) => row.governed && row.form(row.governed.value) },
    { name: "Held out", right: true, of: (row) => row.holdout && row.form(row.holdout.value) },
    { name: "Difference, 95% interval", right: true, of: (row) => row.difference && told(row.difference, (value) => (row.key === "calls" ? signed(value, 2) : row.form(value))) },
    { name: "Against zero", of: (row) => row.difference && h("div.interval-box", interval(row.difference, spread(row), `${row.name}: the difference is ${told(row.difference, row.form)}`)) },
    { name: "Saved in all", right: true, of: (row) => row.saved && told(row.saved, row.sum) },
  ];
  const known = rows.filter((row) => row.governed && row.holdout);
  const unknown = rows.filter((row) => !row.governed || !row.holdout).map((row) => row.name.toLowerCase());
  const score = effect.score
    ? h("p", h("strong", "Score: "), `governed ${percent(effect.governed.score?.value)}, held out ${percent(effect.holdout.score?.value)}; difference ${told(effect.score, (value) => `${signed(100 * value, 1)} points`)}.`)
    : h("p.note", "Nobody told how conversations ended in both arms: POST /governor/feedback, and harm is measured here.");
  return [
    table("Governed conversations against the holdout", columns, known),
    score,
    h("p.note", `${count(effect.governed.conversations)} governed and ${count(effect.holdout.conversations)} held-out conversations. They are compared whole, from the first call that was proposed to the last answer; seconds are those that the user waits.${effect.under_way ? ` ${count(effect.under_way)} are under way and not counted yet.` : ""}${Math.min(effect.governed.conversations, effect.holdout.conversations) < effect.least ? ` An interval needs ${effect.least} in each arm.` : ""}`),
    unknown.length ? h("p.note", `Not known: ${unknown.join(", ")}; upstream tells the tokens of a stream only where the client asks for them.`) : null,
    data.priced ? null : h("p.note", "In money, once ", h("code", "prices"), " are set."),
  ].filter(Boolean);
}

function spread(row) {
  return Math.max(...[row.difference.value, row.difference.low ?? 0, row.difference.high ?? 0].map(Math.abs));
}

function harm(data) {
  const gates = Object.entries(data.gates ?? {});
  if (!data.gates)
    return empty(`The policy ${data.policy} has no certificate.`, h("span", "Its thresholds are yours. ", h("a", { href: "#/what-if" }, "What if"), " bounds the harm on recorded calls; ", h("code", "governance.policy: calibrated"), " keeps a bound by itself."));
  if (!gates.length) return empty("No gate was fitted yet.", "The gate observes until enough calls are labelled. That is what observing is for.");
  return h(
    "ul.gates",
    gates.map(([name, gate]) => {
      const sure = gate.certificate;
      const kind = gate.enforces ? "good" : gate.lapsed ? "bad" : "plain";
      return h(
        "li",
        h("p.row", h("strong", name), badge(kind, gate.enforces ? "certified" : gate.lapsed ? "lapsed" : "observes")),
        sure ? h("div.meter-box", meter(sure.bound, sure.max_harm, Math.max(sure.max_harm, sure.bound) * 1.25, `At most ${percent(sure.bound, 2)} harm, ${percent(sure.max_harm, 2)} allowed`), h("span.note", `at most ${percent(sure.bound, 2)} of ${percent(sure.max_harm, 2)} allowed`)) : null,
        h("p", gate.says),
      );
    }),
  );
}

function overhead(data) {
  if (!data.requests) return empty("No governed request yet.");
  return h(
    "dl.pairs",
    h("div", h("dt", "Half of the requests"), h("dd.figure.small", seconds(data.p50))),
    h("div", h("dt", "99 of 100 at most"), h("dd.figure.small", seconds(data.p99))),
    h("div.wide", h("dd.note", `${count(data.requests)} requests ${data.recent ? "in the last minute" : "since the start"}; time that the governor itself takes, without the model's and the probes'.`)),
  );
}

function health(data) {
  const { health: now, total } = data;
  const sum = (values) => Object.values(values).reduce((a, b) => a + b, 0);
  const line = (kind, name, text) => h("li", h(`i.dot.${kind}`, { "aria-hidden": "true" }), h("span", h("strong", name), " ", h("span.said", text)));
  const named = (values) => Object.entries(values).filter(([, many]) => many).map(([name, many]) => `${words(name)} ${short(many)}`).join(", ");
  const upstreams = Object.entries(now.upstreams);
  const share = total.measured / total.calls;
  const failed = sum(now.fail_open);
  const broken = sum(now.upstream_failures);
  const probes = sum(now.probe_failures);
  const ungoverned = sum(now.ungoverned);
  return h(
    "ul.health",
    upstreams.length ? upstreams.map(([url, up]) => line(up ? "good" : "bad", url, up ? "answers" : "does not answer")) : line("plain", "Upstream", "not looked at yet"),
    line(share > 0.9 ? "good" : share > 0.5 ? "warn" : "bad", "Entropy source", `${percent(share)} of the calls have an entropy before them${now.missing_logprobs ? `; ${count(now.missing_logprobs)} answers lacked logprobs` : ""}`),
    line(probes ? "warn" : "good", "Probes", probes ? `${named(now.probe_failures)} failed` : "all answered"),
    line(failed ? "bad" : "good", "Failed open", failed ? named(now.fail_open) : "never"),
    line(broken ? "warn" : "good", "Upstream failures", broken ? named(now.upstream_failures) : "none"),
    line(ungoverned ? "warn" : "good", "Passed ungoverned", ungoverned ? `${named(now.ungoverned)} (requests with tools)` : "no request with tools"),
    line(now.store_errors ? "bad" : "good", "Store", now.store_errors ? `${count(now.store_errors)} records could not be read or written` : "works"),
    line("plain", "Requests", `${count(now.running)} running, ${count(now.waiting)} waiting`),
  );
}

export const overview = { title: "Overview", make };
