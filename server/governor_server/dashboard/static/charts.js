// Charts: uPlot for what goes over an axis, a few lines of SVG for the small ones.
import { h, s } from "./dom.js";
import { number, signed } from "./format.js";

const charts = new Set();

/** The value of a colour of the theme. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Draw all charts anew, in the colours of another theme. */
export function repaint() {
  for (const chart of charts) chart.draw();
}

/** Forget the charts of a view that is left. */
export function clear() {
  for (const chart of charts) chart.end();
  charts.clear();
}

/** A chart of uPlot in a box that it fills. `options()` is asked whenever it is drawn anew. */
export class Chart {
  constructor(box, options, height = 220) {
    this.box = box;
    this.options = options;
    this.height = height;
    this.data = null;
    this.plot = null;
    this.watch = new ResizeObserver(() => this.fit());
    this.watch.observe(box);
    charts.add(this);
  }

  show(data) {
    this.data = data;
    if (this.plot) this.plot.setData(data);
    else this.draw();
  }

  draw() {
    if (!this.data || !this.box.clientWidth) return;
    this.plot?.destroy();
    const axis = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const given = this.options();
    given.axes = given.axes.map((own) => ({ ...axis, ...own }));
    this.plot = new window.uPlot({ width: this.box.clientWidth, height: this.height, legend: { show: false }, cursor: { points: { size: 6 }, drag: { setScale: false } }, ...given }, this.data, this.box);
    const canvas = this.box.querySelector("canvas");
    canvas.setAttribute("aria-hidden", "true");
  }

  fit() {
    if (!this.plot) this.draw();
    else if (this.plot.width !== this.box.clientWidth && this.box.clientWidth) this.plot.setSize({ width: this.box.clientWidth, height: this.height });
  }

  end() {
    this.watch.disconnect();
    this.plot?.destroy();
    this.plot = null;
  }
}

/** Bars for uPlot. */
export const bars = () => window.uPlot.paths.bars({ size: [0.85, 40], align: 1 });

/** A line without axes, of a few dozen values. */
export function sparkline(values, label) {
  const most = Math.max(1, ...values);
  const points = values.map((value, place) => `${((place / Math.max(1, values.length - 1)) * 100).toFixed(2)},${(23 - (value / most) * 22).toFixed(2)}`);
  return s("svg.spark", { viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label }, s("polyline", { points: points.join(" ") }));
}

/** A distribution: columns between edges, one more on either side. Those above zero are of results that helped. */
export function distribution(edges, counts, label) {
  const most = Math.max(1, ...counts);
  const step = 100 / counts.length;
  const columns = counts.map((many, place) => {
    const height = many ? Math.max(1.2, (many / most) * 30) : 0;
    const low = place === 0 ? "below" : signed(edges[place - 1], 1);
    const high = place === edges.length ? "and above" : `to ${signed(edges[place], 1)}`;
    const kind = place === 0 || edges[place - 1] < 0 ? "worse" : "better";
    return s(`rect.${kind}`, { x: (place * step + 0.25).toFixed(2), y: (31 - height).toFixed(2), width: (step - 0.5).toFixed(2), height: height.toFixed(2) }, s("title", `${low} ${high} nats: ${many}`));
  });
  const zero = (edges.findIndex((edge) => edge >= 0) + 1) * step;
  return s("svg.distribution", { viewBox: "0 0 100 32", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...columns, s("line", { x1: zero, x2: zero, y1: 0, y2: 32 }), s("line", { x1: 0, x2: 100, y1: 31.5, y2: 31.5 }));
}

/** A difference with its interval, on a line through zero that is as long for all `spread`. */
export function interval(estimate, spread, label) {
  const place = (value) => 50 + Math.max(-48, Math.min(48, (value / (spread || 1)) * 46));
  const parts = [s("line.zero", { x1: 50, x2: 50, y1: 0, y2: 20 })];
  if (estimate.low !== null) parts.push(s("line.range", { x1: place(estimate.low), x2: place(estimate.high), y1: 10, y2: 10 }));
  parts.push(s("line.point", { x1: place(estimate.value), x2: place(estimate.value), y1: 4, y2: 16 }));
  return s("svg.interval", { viewBox: "0 0 100 20", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...parts);
}

/** A bar that is filled up to a share, with a mark at another. */
export function meter(value, mark, most, label) {
  const place = (part) => `${Math.min(100, (part / most) * 100).toFixed(2)}`;
  return s("svg.meter", { viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img", "aria-label": label }, s("rect.whole", { x: 0, y: 0, width: 100, height: 8 }), s("rect.part", { x: 0, y: 0, width: place(value), height: 8 }), mark === null ? null : s("rect.mark", { x: Math.max(0, place(mark) - 0.5), y: 0, width: 1, height: 8 }));
}

/** What the colours of a chart mean. `parts`: [class, text]. */
export function legend(parts) {
  return h("ul.legend", parts.map(([kind, text]) => h("li", h(`i.${kind}`, { "aria-hidden": "true" }), text)));
}

/** A value with the ends of its interval, in words. */
export function told(estimate, form = (value) => number(value, 2)) {
  if (!estimate) return "–";
  if (estimate.low === null) return form(estimate.value);
  return `${form(estimate.value)} (${form(estimate.low)} to ${form(estimate.high)})`;
}
