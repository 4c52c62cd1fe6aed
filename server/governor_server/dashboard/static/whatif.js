// Another bound on the harm: what each policy would be allowed, and what that would have saved on the recorded calls.
import { Chart, colour, legend } from "./charts.js";
import { badge, empty, h, say, table } from "./dom.js";
import { count, percent } from "./format.js";

async function make(context, root) {
  root.replaceChildren(h("p.empty", { role: "status" }, "Trying every setting on the recorded calls; that takes some seconds…"));
  const data = await context.ask("whatif");
  if (!context.current()) return {};
  if (!data.conversations || !data.labelled) {
    root.replaceChildren(
      data.conversations
        ? empty("No recorded call has a label.", h("span", "A label takes two forced answers, before a call and after its result. ", h("code", "observe.probe"), " and ", h("code", "experiment.labels"), " say which conversations get them."))
        : empty("Nothing was only observed yet.", h("span", "What withholding would have cost is read from conversations in which nothing was withheld: observe for a while, or keep an ", h("code", "experiment.holdout"), ".")),
    );
    return {};
  }
  const points = data.points;
  const nearest = (bound) => points.reduce((best, point, place) => (Math.abs(Math.log(point.max_harm / bound)) < Math.abs(Math.log(points[best].max_harm / bound)) ? place : best), 0);
  const start = Number(context.query.get("max_harm")) || data.max_harm;
  const names = points[0].choices.map((choice) => choice.policy);
  const box = h("div.chart", { role: "img", "aria-label": "Share of the calls that each policy would save, by the bound on the harm" });
  const says = h("p.lead", { role: "status" });
  const rows = h("div");
  const snippet = h("pre.snippet", { tabindex: "0", "aria-label": "Settings" });
  const shown = h("output", { for: "bound" });
  const slider = h("input", { type: "range", id: "bound", min: 0, max: points.length - 1, step: 1, value: nearest(start), oninput: () => choose(Number(slider.value)) });
  let at = Number(slider.value);

  const share = (choice) => (choice.certified && choice.summary && choice.summary.calls ? choice.summary.saved_least / choice.summary.calls : 0);
  const lines = names.map((_, place) => points.map((point) => share(point.choices[place])));
  const hues = names.map((_, place) => `series-${place % 8}`);

  const chart = new Chart(box, () => ({
    axes: [{ size: 30, values: (_, all) => all.map((bound) => (bound === null ? "" : percent(bound, bound < 0.01 ? 1 : 0))) }, { size: 48, values: (_, all) => all.map((part) => percent(part, 0)) }],
    scales: { x: { time: false, distr: 3, range: [points[0].max_harm, points.at(-1).max_harm] }, y: { range: (_, __, most) => [0, Math.max(0.05, most * 1.08)] } },
    series: [{}, ...names.map((name, place) => ({ label: name, stroke: colour(hues[place]), width: name === points[at].best ? 3 : 1.5, points: { show: false }, paths: window.uPlot.paths.stepped({ align: 1 }) }))],
    hooks: {
      draw: [
        (plot) => {
          const pen = plot.ctx;
          const mark = (bound, hue, dash) => {
            const x = plot.valToPos(bound, "x", true);
            pen.save();
            pen.strokeStyle = colour(hue);
            pen.lineWidth = 2 * devicePixelRatio;
            pen.setLineDash(dash.map((part) => part * devicePixelRatio));
            pen.beginPath();
            pen.moveTo(x, plot.bbox.top);
            pen.lineTo(x, plot.bbox.top + plot.bbox.height);
            pen.stroke();
            pen.restore();
          };
          mark(data.max_harm, "soft", [4, 4]);
          mark(points[at].max_harm, "accent", []);
        },
      ],
    },
  }), 240);

  function choose(place) {
    at = place;
    const point = points[place];
    const best = point.choices.find((choice) => choice.policy === point.best);
    say(shown, percent(point.max_harm, 2));
    slider.setAttribute("aria-valuetext", percent(point.max_harm, 2));
    say(
      says,
      best
        ? `With at most ${percent(point.max_harm, 2)} harm, ${best.policy}${best.setting === "-" ? "" : ` at ${best.setting}`} would have saved ${count(best.summary.saved_least)} to ${count(best.summary.saved_most)} of ${count(best.summary.calls)} calls (${percent(share(best))} for sure).`
        : `With at most ${percent(point.max_harm, 2)} harm, no policy is certified on these conversations: observe.`,
    );
    rows.replaceChildren(table("Policies at this bound", columns(point), point.choices));
    say(snippet, settings(point, best));
    history.replaceState(null, "", `#/what-if?max_harm=${point.max_harm}`);
    chart.draw();
  }

  root.replaceChildren(
    h("section.card", { "aria-labelledby": "bound-title" }, h("h2", { id: "bound-title" }, h("label", { for: "bound" }, "Share of first withheld calls that may change the answer"), " ", shown), h("div.slider", h("span.note", percent(points[0].max_harm, 1)), slider, h("span.note", percent(points.at(-1).max_harm, 0))), says),
    h("section.card", { "aria-labelledby": "curve" }, h("h2", { id: "curve" }, "Calls saved for sure, by the bound"), legend([...names.map((name, place) => [hues[place], name]), ["dashed", "configured"]]), box),
    h("div.card", h("h2", { id: "choices" }, "Policies at this bound"), rows),
    h("section.card", { "aria-labelledby": "settings" }, h("h2", { id: "settings" }, "Settings that do this"), snippet),
    h("p.note", `Replayed on ${count(data.conversations)} conversations in which nothing was withheld, with ${count(data.calls)} calls, ${count(data.labelled)} of them labelled. All bounds hold together with ${percent(data.confidence, 0)} confidence. Only the first withheld call of a conversation is judged: what came behind it would have gone another way. `, h("code", "governor tune"), " does the same and writes the settings."),
  );
  chart.show([points.map((point) => point.max_harm), ...lines]);
  choose(at);
  return {};

  function columns(point) {
    return [
      { name: "Policy", head: true, of: (choice) => h("span", choice.policy, choice.policy === point.best ? h("span", " ", badge("good", "best")) : null, choice.policy === data.policy ? h("span", " ", badge("plain", choice.setting === data.setting ? "in force" : `in force at ${data.setting}`)) : null) },
      { name: "Setting", of: (choice) => (choice.setting === "-" ? "–" : h("code", choice.setting)) },
      { name: "Verdict", of: (choice) => (choice.certified ? badge("good", "certified") : h("span", choice.verdict)) },
      { name: "First withheld", right: true, of: (choice) => choice.summary && count(choice.summary.crossings) },
      { name: "Changed the answer", right: true, of: (choice) => choice.summary && `${count(choice.summary.harmful)} of ${count(choice.summary.labelled)}` },
      { name: "At most", right: true, of: (choice) => choice.summary && percent(choice.summary.bound, 2) },
      { name: "Calls saved", right: true, of: (choice) => choice.summary && `${count(choice.summary.saved_least)} to ${count(choice.summary.saved_most)}` },
    ];
  }
}

function settings(point, best) {
  if (!best) return "governance:\n  mode: observe\n";
  if (best.policy === "calibrated") return `governance:\n  policy: calibrated\ncalibration:\n  max_harm: ${point.max_harm}\n`;
  const [key, value] = best.setting.split("=");
  const parameters = best.setting === "-" ? "" : `  parameters:\n    ${key}: ${value}\n`;
  return `governance:\n  policy: ${best.policy}\n${parameters}# It acts once governance.mode is enforce.\n`;
}

export const whatIf = { title: "What if", make };
