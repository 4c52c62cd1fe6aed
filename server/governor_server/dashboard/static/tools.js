// Each tool: how often, how much of it was worth it, how often the gate closed, and what its results did to the entropy.
import { distribution } from "./charts.js";
import { empty, h, table } from "./dom.js";
import { count, number, percent, signed } from "./format.js";

const REFRESH_MS = 5000;

const COLUMNS = [
  { name: "Tool", key: "tool", head: true, sort: (row) => row.tool, of: (row) => h("a", { href: `#/conversations?text=${encodeURIComponent(row.tool)}` }, row.tool) },
  { name: "Calls", key: "calls", right: true, sort: (row) => row.calls, of: (row) => count(row.calls) },
  { name: "Changed the answer", key: "value", right: true, sort: (row) => (row.labelled ? row.changed / row.labelled : -1), of: (row) => (row.labelled ? h("span", percent(row.changed / row.labelled), h("small", ` of ${count(row.labelled)} labelled`)) : "no labels") },
  { name: "Withheld", key: "gate", right: true, sort: (row) => row.withheld / row.calls, of: (row) => h("span", percent(row.withheld / row.calls), h("small", ` ${count(row.withheld)}`)) },
  { name: "Against the policy", key: "spared", right: true, sort: (row) => row.spared / row.calls, of: (row) => h("span", percent(row.spared / row.calls), h("small", ` ${count(row.spared)}`)) },
  { name: "Pruned", key: "pruned", right: true, sort: (row) => row.pruned, of: (row) => count(row.pruned) },
  { name: "Mean reduction", key: "reduction", right: true, sort: (row) => row.mean_reduction ?? -99, of: (row) => (row.mean_reduction === null ? "–" : `${signed(row.mean_reduction, 2)} nats`) },
];

async function make(context, root) {
  let sorted = { key: "calls", down: true };
  let data = await context.ask("tools");

  const columns = () => [
    ...COLUMNS,
    {
      name: "Entropy reduction, −1.5 to +1.5 nats",
      wide: true,
      of: (row) => {
        const many = row.reductions.reduce((a, b) => a + b, 0);
        return many ? distribution(data.edges, row.reductions, `${row.tool}: ${count(many)} results, mean reduction ${number(row.mean_reduction, 2)} nats`) : "no result measured";
      },
    },
  ];

  const heading = (column) => {
    if (!column.sort) return null;
    const here = sorted.key === column.key;
    const turn = () => {
      sorted = { key: column.key, down: here ? !sorted.down : column.key !== "tool" };
      draw();
      root.querySelector(`button[data-key="${column.key}"]`).focus();
    };
    return h("th", { scope: "col", class: column.right ? "right" : null, "aria-sort": here ? (sorted.down ? "descending" : "ascending") : "none" }, h("button.sort", { type: "button", "data-key": column.key, onclick: turn }, column.name, h("i", { "aria-hidden": "true" }, here ? (sorted.down ? " ▾" : " ▴") : "")));
  };

  function draw() {
    if (!data.tools.length) {
      root.replaceChildren(empty("No tool has been called yet.", "The tools appear here with their first calls."));
      return;
    }
    const by = COLUMNS.find((column) => column.key === sorted.key).sort;
    const order = (a, b) => (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : 0) * (sorted.down ? -1 : 1);
    const rows = [...data.tools].sort(order);
    root.replaceChildren(
      h("p.lead", `${count(rows.length)} tools. A call was of value where the forced answer was another one after its result; only calls with both probes tell.`),
      h("div.card", table("Tools", columns(), rows, { heading })),
      h("p.note", "Entropy reduction is the mean token entropy of the text before a call minus that after its result. Right of the line the model was surer afterwards."),
    );
  }

  draw();
  const timer = setInterval(async () => {
    if (document.hidden || root.contains(document.activeElement)) return;
    try {
      data = await context.ask("tools");
      if (context.current()) draw();
    } catch {
      // The stream's light says that the governor is away.
    }
  }, REFRESH_MS);
  return { end: () => clearInterval(timer) };
}

export const tools = { title: "Tools", make };
