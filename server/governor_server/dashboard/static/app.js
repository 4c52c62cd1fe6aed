// Which view stands in the page, the stream of figures, and the theme.
import { clear, repaint } from "./charts.js";
import { h, say } from "./dom.js";
import { conversations } from "./conversations.js";
import { inspector } from "./inspector.js";
import { overview } from "./overview.js";
import { tools } from "./tools.js";
import { whatIf } from "./whatif.js";

const VIEWS = { overview, tools, conversations, conversation: inspector, "what-if": whatIf };
const RETRY_MS = 3000;

const place = document.getElementById("view");
const title = document.getElementById("title");
const live = document.getElementById("live");

const state = { view: null, name: "", newest: null, round: 0 };

/** The JSON of a path of the API. Throws an `Error` with words for the reader. */
async function ask(path) {
  let response;
  try {
    response = await fetch(`dashboard/api/${path}`, { headers: { accept: "application/json" } });
  } catch {
    throw new Error("The governor does not answer.");
  }
  if (response.status === 401 || response.status === 403) {
    location.reload();
    throw new Error("The session has ended.");
  }
  if (response.status === 404) throw new Error("There is no such conversation (any more).");
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error?.message ?? `The governor answered ${response.status}.`);
  return response.json();
}

/** Show what the address says: #/name or #/name/rest, with ?a=b behind it. */
async function show() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [given, ...rest] = path.split("/");
  const name = Object.hasOwn(VIEWS, given) ? given : "overview";
  const round = ++state.round;
  state.view?.end?.();
  state.view = null;
  clear();
  const context = {
    ask,
    argument: decodeURIComponent(rest.join("/")),
    query: new URLSearchParams(query ?? ""),
    newest: () => state.newest,
    current: () => state.round === round,
    heading: (text) => {
      say(title, text);
      document.title = `${text} · tool-governor`;
    },
  };
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#/${name === "conversation" ? "conversations" : name}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  context.heading(VIEWS[name].title);
  place.setAttribute("aria-busy", "true");
  delete document.documentElement.dataset.shown;
  if (name !== state.name && state.name) {
    place.replaceChildren();
    document.getElementById("main").focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  state.name = name;
  try {
    const view = await VIEWS[name].make(context, place);
    if (round !== state.round) {
      view?.end?.();
      return;
    }
    state.view = view;
    if (state.newest) view?.tick?.(state.newest);
  } catch (error) {
    if (round !== state.round) return;
    place.replaceChildren(h("div.empty", { role: "alert" }, h("p", h("strong", error.message)), h("p", h("button.primary", { type: "button", onclick: show }, "Try again"))));
  }
  place.setAttribute("aria-busy", "false");
  document.documentElement.dataset.shown = name;
}

/** The stream of figures; opened again whenever it ends. */
function listen() {
  const source = new EventSource("dashboard/events");
  source.addEventListener("open", () => connected("live", "Live"));
  source.addEventListener("tick", (event) => {
    state.newest = JSON.parse(event.data);
    state.view?.tick?.(state.newest);
    say(document.getElementById("about"), `tool-governor ${state.newest.version} · mode ${state.newest.mode} · policy ${state.newest.policy}`);
  });
  source.addEventListener("error", () => {
    connected("lost", "Reconnecting");
    // A browser gives up on an answer that is no stream, such as that of a proxy that is ending.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS);
  });
  addEventListener("pagehide", () => source.close(), { once: true });
}

function connected(kind, text) {
  live.dataset.state = kind;
  say(live.lastElementChild, text);
}

const ORDER = ["system", "light", "dark"];

function themed() {
  const now = document.documentElement.dataset.theme ?? "system";
  const button = document.getElementById("theme");
  say(button, { system: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[now]);
  repaint();
}

function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "system";
  const next = ORDER[(ORDER.indexOf(now) + 1) % ORDER.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    if (next === "system") localStorage.removeItem("governor-theme");
    else localStorage.setItem("governor-theme", next);
  } catch {
    // It holds until the page is left.
  }
  themed();
}

document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("sign-out").hidden = document.body.dataset.session !== "key";
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themed);
addEventListener("hashchange", show);
themed();
listen();
show();
