// The conversations, newest first, and the way into one.
import { badge, empty, h, say, table } from "./dom.js";
import { ago, count, moment, number, percent } from "./format.js";

const LIMIT = 50;
const REFRESH_MS = 5000;
const TYPING_MS = 250;

/** The address of a conversation. */
export const link = (name) => `#/conversation/${encodeURIComponent(name)}`;

async function make(context, root) {
  const query = context.query;
  const asked = { text: query.get("text") ?? "", arm: query.get("arm") ?? "", only: query.get("only") ?? "", start: Number(query.get("start")) || 0 };
  const list = h("div");
  const found = h("p.note", { role: "status" });
  const pages = h("nav.pages", { "aria-label": "Pages" });

  const select = (name, label, options) =>
    h("label", h("span", label), h("select", { name, onchange: (event) => change(name, event.target.value) }, options.map(([value, text]) => h("option", { value, selected: asked[name] === value }, text))));
  let typing = 0;
  const search = h("input", {
    type: "search",
    name: "text",
    value: asked.text,
    placeholder: "name or tool",
    autocomplete: "off",
    spellcheck: "false",
    oninput: (event) => {
      clearTimeout(typing);
      typing = setTimeout(() => change("text", event.target.value), TYPING_MS);
    },
  });
  const form = h(
    "form.filters",
    { role: "search", onsubmit: (event) => event.preventDefault() },
    h("label", h("span", "Search"), search),
    select("arm", "Arm", [["", "all"], ["governed", "governed"], ["holdout", "held out"], ["observed", "observed"]]),
    select("only", "With a call that was", [["", "anything"], ["withheld", "withheld"], ["spared", "passed against the policy"], ["explored", "explored"], ["pruned", "pruned"]]),
  );

  function change(name, value) {
    asked[name] = value;
    asked.start = 0;
    remember();
    load();
  }

  /** The address says what is shown, so that it can be sent to somebody. */
  function remember() {
    const said = new URLSearchParams(Object.entries(asked).filter(([, value]) => value));
    history.replaceState(null, "", `#/conversations${said.size ? `?${said}` : ""}`);
  }

  async function load() {
    const data = await context.ask(`conversations?${new URLSearchParams({ ...asked, limit: LIMIT })}`);
    if (!context.current()) return;
    draw(data);
  }

  function draw(data) {
    const now = Date.now() / 1000;
    const filtered = asked.text || asked.arm || asked.only;
    say(found, data.count ? `${count(data.count)} conversations` : "");
    if (!data.count) {
      list.replaceChildren(filtered ? empty("No conversation fits.", "Take a filter away, or search for something else.") : empty("No conversation has proposed a call yet.", "Conversations without a tool call have no record."));
    } else {
      list.replaceChildren(h("div.card", table("Conversations", columns(now), data.conversations)));
    }
    const last = Math.min(data.start + LIMIT, data.count);
    const turn = (name, start, can) => h("button.plain", { type: "button", disabled: !can, onclick: () => { asked.start = start; remember(); load(); } }, name);
    pages.replaceChildren(...(data.count > LIMIT ? [turn("Newer", Math.max(0, data.start - LIMIT), data.start > 0), h("span", `${count(data.start + 1)} to ${count(last)}`), turn("Older", data.start + LIMIT, last < data.count)] : []));
  }

  root.replaceChildren(form, found, list, pages);
  await load();
  const timer = setInterval(() => {
    // Nobody loses the row that a hand or a finger is on.
    if (document.hidden || asked.start || list.contains(document.activeElement) || list.matches(":hover")) return;
    load().catch(() => {});
  }, REFRESH_MS);
  return { end: () => { clearInterval(timer); clearTimeout(typing); } };
}

const ARMS = { governed: "plain", holdout: "warn", observed: "plain" };

function columns(now) {
  return [
    { name: "Conversation", head: true, of: (row) => h("a.name.keep", { href: link(row.conversation) }, row.conversation) },
    { name: "Last call", of: (row) => h("time.keep", { datetime: new Date(row.last * 1000).toISOString(), title: moment(row.last) }, ago(row.last, now)) },
    { name: "Arm", of: (row) => badge(ARMS[row.arm] ?? "plain", row.arm === "holdout" ? "held out" : row.arm) },
    { name: "Calls", right: true, minor: true, of: (row) => count(row.calls) },
    { name: "Withheld", right: true, of: (row) => [row.withheld ? h("strong.withheld", count(row.withheld)) : "0", h("span.phone", ` of ${count(row.calls)} calls`)] },
    { name: "Against policy", right: true, minor: true, of: (row) => count(row.spared) },
    { name: "Changed the answer", right: true, minor: true, of: (row) => (row.labelled ? `${row.changed} of ${row.labelled}` : "–") },
    { name: "Entropy, first to last", right: true, of: (row) => (row.entropy_first === null ? "–" : `${number(row.entropy_first)} → ${row.entropy_last === null ? "–" : number(row.entropy_last)}`) },
    { name: "Score", right: true, minor: true, of: (row) => (row.score === null ? "–" : percent(row.score, 0)) },
    { name: "Tools", wide: true, minor: true, of: (row) => row.tools.join(", ") },
  ];
}

export const conversations = { title: "Conversations", make };
