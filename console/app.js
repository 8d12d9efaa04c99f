// The live page of Aloft: runs, their actions, errors and logs, from the RPCs that the CLI uses too.
// Plain DOM and Connect over fetch. Every text from outside becomes a text node, never markup.

// === The wire ===

class RpcError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** How far the server's clock is ahead of this machine's. */
let skew = 0;
const now = () => Date.now() + skew;

const unreachable = (error) =>
  error.name === "AbortError" ? error : new RpcError("unavailable", "the server does not answer");

async function post(method, type, body, signal) {
  const headers = { "content-type": type, "connect-protocol-version": "1" };
  const response = await fetch(`/flyteidl2.${method}`, { method: "POST", headers, body, signal }).catch((error) => {
    throw unreachable(error);
  });
  const ahead = Date.parse(response.headers.get("date")) - Date.now();
  skew = Math.abs(ahead) > 2000 ? ahead : 0; // The header has whole seconds: less is no difference.
  if (response.ok) return response;
  const error = await response.json().catch(() => ({}));
  const code = error.code ?? (response.status >= 502 ? "unavailable" : "unknown");
  throw new RpcError(code, error.message ?? `the server answered with status ${response.status}`);
}

const call = async (method, request, signal) =>
  (await post(method, "application/json", JSON.stringify(request), signal)).json();

/** The messages of a server stream. Each comes in an envelope: flags, length, JSON; flag 2 marks the end of the stream. */
async function* stream(method, request, signal, opened) {
  const json = new TextEncoder().encode(JSON.stringify(request));
  const envelope = new Uint8Array(5 + json.length);
  new DataView(envelope.buffer).setUint32(1, json.length);
  envelope.set(json, 5);
  const response = await post(method, "application/connect+json", envelope, signal);
  opened();
  const reader = response.body.getReader();
  let buffer = new Uint8Array(0);
  for (;;) {
    const { done, value } = await reader.read().catch((error) => { throw unreachable(error); });
    if (done) throw new RpcError("unavailable", "the connection broke off");
    const joined = new Uint8Array(buffer.length + value.length);
    joined.set(buffer);
    joined.set(value, buffer.length);
    buffer = joined;
    while (buffer.length >= 5) {
      const end = 5 + new DataView(buffer.buffer, buffer.byteOffset).getUint32(1);
      if (buffer.length < end) break;
      const last = buffer[0] & 2;
      const message = JSON.parse(new TextDecoder().decode(buffer.subarray(5, end)));
      buffer = buffer.subarray(end);
      if (last && message.error) throw new RpcError(message.error.code, message.error.message ?? "");
      if (last) return;
      yield message;
    }
  }
}

const offline = new Set();
/** Notes whether `who` has lost the server, and says so at the top of the page while anybody has. */
function lost(who, isLost) {
  if (isLost) offline.add(who);
  else offline.delete(who);
  document.getElementById("offline").hidden = offline.size === 0;
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const shown = () => new Promise((done) =>
  document.hidden ? document.addEventListener("visibilitychange", () => done(), { once: true }) : done());

/** Tries until the server answers: its answer, or an error that is not about being reached. */
async function persist(signal, attempt) {
  const me = Symbol();
  let pause = 500;
  const reached = () => { pause = 500; lost(me, false); };
  try {
    for (;;) {
      try {
        return await attempt(reached);
      } catch (error) {
        if (signal.aborted || error.code !== "unavailable") throw error;
      }
      lost(me, true);
      await sleep(pause);
      pause = Math.min(pause * 2, 8000);
      signal.throwIfAborted();
    }
  } finally {
    lost(me, false);
  }
}

const ask = (method, request, signal) => persist(signal, () => call(method, request, signal));

/**
 * Follows a server stream until it ends by itself. Lets go of it while the tab is hidden: a browser has only six
 * connections for one server. `opened` is told of each new connection, which starts over.
 */
const follow = (method, request, signal, onMessage, opened = () => {}) =>
  persist(signal, async (reached) => {
    for (;;) {
      await shown();
      const hidden = new AbortController();
      const hide = () => document.hidden && hidden.abort();
      document.addEventListener("visibilitychange", hide);
      const connected = () => { reached(); opened(); };
      try {
        const messages = stream(method, request, AbortSignal.any([signal, hidden.signal]), connected);
        for await (const message of messages) onMessage(message);
        return;
      } catch (error) {
        if (signal.aborted || !hidden.signal.aborted) throw error;
      } finally {
        document.removeEventListener("visibilitychange", hide);
      }
    }
  });

// === The document ===

/** An element: `h("a.name", { href }, "text", child)`. Strings become text. */
function h(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props ?? {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value != null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

/** Changes only what differs, so that selections and clicks under way survive. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function set(element, attribute, value) {
  if (value == null) element.removeAttribute(attribute);
  else if (element.getAttribute(attribute) !== String(value)) element.setAttribute(attribute, value);
}

/** `draw`, at most once per frame. */
function perFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
}

/** Makes the children of `parent` those of `items`, in order, keeping what is there. */
function keyed(parent, items, keyOf, make) {
  const before = parent.byKey ?? new Map();
  parent.byKey = new Map();
  for (const item of items) {
    const key = keyOf(item);
    const row = before.get(key) ?? make(item);
    before.delete(key);
    parent.byKey.set(key, row);
    row.update(item);
  }
  for (const gone of before.values()) gone.remove();
  let at = parent.firstChild;
  for (const row of parent.byKey.values()) {
    if (row === at) at = at.nextSibling;
    else parent.insertBefore(row, at);
  }
}

const PHASES = {
  QUEUED: ["○", "queued"], WAITING_FOR_RESOURCES: ["◌", "waiting"], INITIALIZING: ["◔", "starting"],
  RUNNING: ["◑", "running"], SUCCEEDED: ["✓", "succeeded"], FAILED: ["✕", "failed"], ABORTED: ["⊘", "aborted"],
  TIMED_OUT: ["◷", "timed out"], PAUSED: ["‖", "paused"], RECOVERED: ["↺", "recovered"], UNSPECIFIED: ["?", "unknown"],
};
const ENDED = new Set(["SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT", "RECOVERED"]);
const BAD = new Set(["FAILED", "ABORTED", "TIMED_OUT"]);
const phaseOf = (of) => (of?.phase ?? "").replace("ACTION_PHASE_", "") || "UNSPECIFIED";

/** A phase as icon, word and colour. */
function phaseMark(phase) {
  const mark = h("span.phase", null, h("span.icon", { "aria-hidden": "true" }), h("span.word"));
  mark.show = (next) => {
    const [icon, word] = PHASES[next] ?? ["?", next.toLowerCase()];
    set(mark, "data-phase", next);
    set(mark, "title", word);
    put(mark.firstChild, icon);
    put(mark.lastChild, word);
  };
  if (phase) mark.show(phase);
  return mark;
}

const time = (text) => (text ? Date.parse(text) : undefined);
const clock = (text) => (text ? new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "");

function lasted(ms) {
  if (!(ms >= 0)) return "";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.floor(ms / 1000);
  const two = (n) => String(n).padStart(2, "0");
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)} min` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)} h`;
}
const span = (of) => (of?.startTime ? lasted((time(of.endTime) ?? now()) - time(of.startTime)) : "");

const names = (action) => {
  const { task, trace, funtionName } = action.metadata ?? {};
  return { short: task?.shortName || trace?.name || funtionName || action.id?.name, full: task?.id?.name || trace?.name };
};

const main = document.getElementById("main");
const path = (place, ...rest) =>
  ["/v2/domain", place.domain, "project", place.project, ...rest].map((part, i) => (i ? encodeURIComponent(part) : part)).join("/");

/** The parts that there are, in a row. */
const dotted = (...parts) => parts.filter(Boolean).join(" · ");

function message(title, text, ...more) {
  return h("section.message", null, h("h1", null, title), h("p", null, text), more);
}

// === Lists ===

async function header(place, signal) {
  const { projects } = await ask("project.ProjectService/ListProjects", { request: { limit: 1000 } }, signal);
  const all = projects?.projects ?? [];
  place ??= { project: all[0]?.id ?? "", domain: all[0]?.domains?.[0]?.id ?? "" };
  const pick = (label, options, chosen, to) => {
    if (!options.some((o) => o.id === chosen)) options = [...options, { id: chosen, name: chosen }];
    const entries = options.map((o) => h("option", { value: o.id, selected: o.id === chosen }, o.name || o.id));
    return h("label", null, h("span", null, label),
      h("select", { onchange: (e) => { location.href = path(to(e.target.value), "runs"); } }, entries));
  };
  const domains = (all.find((p) => p.id === place.project) ?? all[0])?.domains ?? [];
  document.getElementById("top").append(
    pick("Project", all, place.project, (project) => ({ ...place, project })),
    pick("Domain", domains, place.domain, (domain) => ({ ...place, domain })),
    h("nav", null, h("a", { href: path(place, "runs") }, "Runs"), h("a", { href: path(place, "tasks") }, "Tasks")));
  return place;
}

function runRow(place) {
  const mark = phaseMark();
  const [link, task, started, duration] = [h("a"), h("td.task"), h("td.started"), h("td.duration")];
  const row = h("tr", null, h("td", null, mark), h("td.run", null, link), task, started, duration);
  row.update = ({ action }) => {
    const name = action.id.run.name;
    mark.show(phaseOf(action.status));
    set(link, "href", path(place, "runs", name));
    put(link, name);
    put(task, names(action).full ?? "");
    put(started, clock(action.status?.startTime));
    put(duration, span(action.status));
  };
  return row;
}

/** The runs of a place, or of one task of it, live. */
function runList(place, task, signal) {
  const projectId = { name: place.project, domain: place.domain };
  const runs = new Map();
  let token, known = false;
  const body = h("tbody");
  const empty = h("p.quiet", { role: "status" }, "Loading…");
  const phase = h("select", { onchange: () => { token = undefined; draw(); load(); } }, h("option", { value: "" }, "all phases"),
    Object.entries(PHASES).filter(([p]) => p !== "UNSPECIFIED").map(([p, [, word]]) => h("option", { value: p }, word)));
  const older = h("button", { type: "button", onclick: () => load() }, "Show older runs");
  const take = (list) => {
    for (const run of list ?? []) runs.set(run.action.id.run.name, run);
    known = true;
    draw();
  };
  const draw = perFrame(() => {
    const rows = [...runs.values()]
      .filter(({ action }) => (!phase.value || phaseOf(action.status) === phase.value) && (!task || names(action).full === task))
      .sort((a, b) => (time(b.action.status?.startTime) ?? 0) - (time(a.action.status?.startTime) ?? 0));
    keyed(body, rows, (run) => run.action.id.run.name, () => runRow(place));
    empty.hidden = known && rows.length > 0;
    put(empty, !known ? "Loading…" : runs.size && phase.value ? `No run is ${PHASES[phase.value][1]}.`
      : "There are no runs here yet. Start one with: flyte run examples/hello.py main");
  });
  const failed = (error) => { if (!signal.aborted) { put(empty, error.message); empty.hidden = false; } };
  async function load() {
    const filters = [];
    if (phase.value) filters.push({ function: "EQUAL", field: "phase", values: [phase.value] });
    if (task) filters.push({ function: "EQUAL", field: "task_name", values: [task] });
    try {
      const page = await ask("workflow.RunService/ListRuns", { projectId, request: { limit: 200, token, filters } }, signal);
      token = page.token;
      older.hidden = !token;
      take(page.runs);
    } catch (error) { failed(error); }
  }
  if (task) load();
  follow("workflow.RunService/WatchRuns", { projectId }, signal, (m) => take(m.runs)).catch(failed);
  setInterval(draw, 1000);
  const head = ["Phase", "Run", "Task", "Started", "Duration"].map((title) => h("th", { scope: "col" }, title));
  return h("section.list", null,
    h("div.bar", null, h("h1", null, task ? "Runs of this task" : "Runs"), h("label", null, h("span", null, "Show"), phase)),
    h("table.runs", null, h("thead", null, h("tr", null, head)), body), empty, older);
}

async function taskList(place, signal) {
  const { tasks = [] } = await ask("task.TaskService/ListTasks",
    { projectId: { name: place.project, domain: place.domain }, request: { limit: 1000 } }, signal);
  const head = ["Task", "Environment", "Version", "Deployed"].map((title) => h("th", { scope: "col" }, title));
  const rows = tasks.map(({ taskId, metadata }) => h("tr", null,
    h("td", null, h("a", { href: path(place, "tasks", taskId.name) }, taskId.name)), h("td", null, metadata?.environmentName ?? ""),
    h("td.id", null, taskId.version), h("td", null, clock(metadata?.deployedAt))));
  return h("section.list", null, h("h1", null, "Deployed tasks"), rows.length
    ? h("table", null, h("thead", null, h("tr", null, head)), h("tbody", null, rows))
    : h("p.quiet", null, "Nothing is deployed here yet. Deploy with: flyte deploy FILE.py ENVIRONMENT"));
}

async function taskPage(place, name, signal) {
  const { details } = await ask("task.TaskService/GetTaskDetails", { taskId: { ...place, name } }, signal);
  const { taskTemplate: template, documentation } = details.spec ?? {};
  const variables = (side) => (template?.interface?.[side]?.variables ?? []).map((v) => v.key).join(", ") || "none";
  const facts = { Version: details.taskId.version, Deployed: clock(details.metadata?.deployedAt), Inputs: variables("inputs"),
    Outputs: variables("outputs"), "Run it with": `flyte run deployed-task ${name}` };
  return [h("section.list", null, h("h1", null, name), h("p", null, documentation?.shortDescription ?? ""),
    h("dl", null, Object.entries(facts).map(([k, v]) => [h("dt", null, k), h("dd", null, v)]))), runList(place, name, signal)];
}

// === Values ===

/** A literal as what one would write in JSON; what has no such form stays as it is on the wire. */
function readable(literal) {
  if (literal.collection) return (literal.collection.literals ?? []).map(readable);
  if (literal.map) return Object.fromEntries(Object.entries(literal.map.literals ?? {}).map(([k, v]) => [k, readable(v)]));
  const scalar = literal.scalar ?? {};
  if (scalar.noneType) return null;
  if (scalar.union) return readable(scalar.union.value ?? {});
  if (scalar.generic) return scalar.generic;
  const reference = scalar.blob ?? scalar.structuredDataset ?? scalar.schema;
  if (reference) return reference.uri;
  if (!scalar.primitive) return literal;
  const [kind, value] = Object.entries(scalar.primitive)[0] ?? [];
  return kind === "integer" && Number.isSafeInteger(Number(value)) ? Number(value) : value;
}

/** Named literals as names and values. Those packed in binary are unpacked by the server, which knows how. */
async function values(literals, variables, signal) {
  const packed = (literal) => JSON.stringify(literal).includes('"binary"');
  let form = {};
  if (literals.some((l) => packed(l.value))) {
    const request = { literals, variables };
    form = await ask("workflow.TranslatorService/LiteralsToLaunchFormJson", request, signal).catch(() => ({}));
  }
  return literals.map(({ name, value = {} }) => {
    const unpacked = packed(value) ? form.json?.properties?.[name]?.default : undefined;
    return [name, unpacked === undefined ? readable(value) : unpacked];
  });
}

const LONGEST_VALUE = 100_000;
function valueList(pairs) {
  return h("dl.values", null, pairs.map(([name, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "";
    const cut = text.length > LONGEST_VALUE ? `${text.slice(0, LONGEST_VALUE)}… (${text.length} characters)` : text;
    return [h("dt", null, name), h("dd", null, h("pre", { tabindex: 0 }, cut))];
  }));
}

// === Logs ===

const CONTROLS = /\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[\d;:?<=>]*[ -/]*[@-ln-~]|\x1b[ -/]*[0-Z\\^-~]|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]/g;
const COLOURS = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];

/** A colour of the 256 as a class name or as CSS. */
function colour256(n) {
  if (n < 16) return { name: (n > 7 ? "bright-" : "") + COLOURS[n % 8] };
  if (n > 231) return { css: `rgb(${Array(3).fill(8 + (n - 232) * 10)})` };
  const level = (i) => (i ? 55 + i * 40 : 0);
  return { css: `rgb(${[Math.floor((n - 16) / 36), Math.floor((n - 16) / 6) % 6, (n - 16) % 6].map(level)})` };
}

/** What the codes of one `ESC [ … m` make of a style. */
function restyle(style, codes) {
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i];
    const side = code >= 40 && code < 50 || code >= 100 ? "bg" : "fg";
    if (code === 0) style = {};
    else if (code === 1) style = { ...style, bold: true };
    else if (code === 2) style = { ...style, dim: true };
    else if (code === 3) style = { ...style, italic: true };
    else if (code === 4) style = { ...style, underline: true };
    else if (code === 22) style = { ...style, bold: false, dim: false };
    else if (code === 23) style = { ...style, italic: false };
    else if (code === 24) style = { ...style, underline: false };
    else if (code === 38 || code === 48) {
      const rgb = codes[i + 1] === 2;
      style = { ...style, [side]: rgb ? { css: `rgb(${codes.slice(i + 2, i + 5)})` } : colour256((codes[i + 2] ?? 0) & 255) };
      i += rgb ? 4 : 2;
    } else if (code === 39 || code === 49) style = { ...style, [side]: undefined };
    else if (code >= 30 && code < 48) style = { ...style, [side]: { name: COLOURS[code % 10] } };
    else if (code >= 90 && code < 108) style = { ...style, [side]: { name: `bright-${COLOURS[code % 10]}` } };
  }
  return style;
}

/** A line of a terminal as spans; what is not colour is left out. Returns the style that the next line starts with. */
function ansi(into, text, style) {
  // What a progress bar has overwritten is gone, as in a terminal.
  text = text.replace(/[\r\n]+$/, "").replace(CONTROLS, "");
  text = text.slice(text.lastIndexOf("\r") + 1);
  for (const [i, part] of text.split(/\x1b\[([\d;:]*)m/).entries()) {
    if (i % 2) style = restyle(style, part.split(/[;:]/).map(Number));
    else if (part) into.append(styled(part.replaceAll("\x1b", ""), style));
  }
  return style;
}

function styled(text, style) {
  const flags = ["bold", "dim", "italic", "underline"].filter((flag) => style[flag]);
  for (const side of ["fg", "bg"]) if (style[side]?.name) flags.push(`${side}-${style[side].name}`);
  if (!flags.length && !style.fg && !style.bg) return text;
  const element = h(["span", ...flags].join("."), null, text);
  if (style.fg?.css) element.style.color = style.fg.css;
  if (style.bg?.css) element.style.backgroundColor = style.bg.css;
  return element;
}

const MOST_LINES = 5000;
/** The log of an attempt, live. `isOver` says whether the attempt has ended. */
function logView(actionId, attempt, isOver, signal) {
  const box = h("div.log", { role: "log", "aria-live": "off", tabindex: 0, "aria-label": "Log" });
  const note = h("p.quiet", { role: "status" }, "No output yet.");
  const tail = h("input", { type: "checkbox", checked: true, onchange: () => draw() });
  let waiting = [], style = {}, lines = 0, seen = 0, skip = 0;
  const draw = perFrame(() => {
    const fresh = document.createDocumentFragment();
    for (const line of waiting.slice(-MOST_LINES)) {
      const at = line.timestamp ? new Date(line.timestamp).toLocaleTimeString([], { hour12: false }) : "";
      const text = h("span.text");
      style = ansi(text, line.message ?? "", style);
      fresh.append(h(line.originator === "SYSTEM" ? "div.line.system" : "div.line", null, h("time", null, at), text));
    }
    lines += waiting.length;
    waiting = [];
    box.append(fresh);
    while (box.childElementCount > MOST_LINES) box.firstChild.remove();
    const left = lines - box.childElementCount;
    const command = `flyte get logs ${actionId.run.name} ${actionId.name}`;
    if (left > 0) put(note, `The first ${left} lines are left out here; ${command} has them.`);
    note.hidden = lines > 0 && left <= 0;
    box.hidden = lines === 0;
    if (tail.checked) box.scrollTop = box.scrollHeight;
  });
  box.addEventListener("scroll", () => { tail.checked = box.scrollTop + box.clientHeight > box.scrollHeight - 8; });
  const take = ({ logs = [] }) => {
    for (const line of logs.flatMap((l) => l.lines ?? [])) {
      if (skip > 0) skip -= 1;
      else { seen += 1; waiting.push(line); }
    }
    draw();
  };
  (async () => {
    while (!signal.aborted) {
      const over = isOver(); // Asked before: what is read afterwards is then all there is.
      try {
        await follow("dataproxy.DataProxyService/TailLogs", { actionId, attempt }, signal, take, () => { skip = seen; });
        if (over || isOver()) break;
      } catch (error) {
        if (signal.aborted) return;
        if (over || error.code !== "not_found") return void put(note, error.message);
      }
      await sleep(1000);
    }
    if (!seen) put(note, "There was no output.");
  })();
  draw();
  return h("section.logs", null, h("div.bar", null, h("h3", null, `Log of attempt ${attempt}`), h("label", null, tail, " Follow")), box, note);
}

// === A run ===

const ROW = 30;

/** The tree of a run's actions. Only the rows in sight are in the document, so that 10,000 are as quick as ten. */
function actionTree(select) {
  const nodes = new Map();
  const closed = new Set();
  let rows = [], selected = "a0", stale = true, last = 0;

  const node = (key) => {
    if (!nodes.has(key)) nodes.set(key, { key, label: key, phase: "UNSPECIFIED", children: [] });
    return nodes.get(key);
  };
  const adopt = (parent, child) => {
    child.parent = parent;
    parent.children.push(child);
    parent.unsorted = true;
  };
  function put1({ action }) {
    const own = node(action.id.name);
    const { parent, group } = action.metadata ?? {};
    const { startTime, endTime, attempts = 0 } = action.status ?? {};
    const [phase, label, trace] = [phaseOf(action.status), names(action).short, !!action.metadata?.trace];
    Object.assign(own, { action, label, phase, start: time(startTime), end: time(endTime), attempts, trace });
    if (own.parent || !parent) return;
    if (!group) return adopt(node(parent), own);
    const folder = node(`${parent}\n${group}`);
    if (!folder.group) {
      Object.assign(folder, { group: true, label: group });
      adopt(node(parent), folder);
    }
    adopt(folder, own);
  }
  const begins = (n) => n.start ?? Math.min(Infinity, ...n.children.slice(0, 1).map((c) => c.start ?? Infinity));
  function flatten() {
    const text = filter.value.trim().toLowerCase();
    const wanted = text && new Set();
    if (text) {
      for (let n of nodes.values()) {
        if (!`${n.label} ${n.key} ${PHASES[n.phase]?.[1]}`.toLowerCase().includes(text)) continue;
        for (; n && !wanted.has(n); n = n.parent) wanted.add(n);
      }
    }
    rows = [];
    const visit = (n, level) => {
      if (wanted && !wanted.has(n)) return;
      rows.push({ node: n, level });
      if (n.unsorted) n.children.sort((a, b) => begins(a) - begins(b));
      n.unsorted = false;
      if (text || !closed.has(n.key)) for (const child of n.children) visit(child, level + 1);
      if (n.group) sum(n);
    };
    if (nodes.has("a0")) visit(node("a0"), 1);
    const total = [...nodes.values()].filter((n) => n.action).length;
    put(count, `${total} action${total === 1 ? "" : "s"}`);
    stale = false;
  }
  /** A folder is as its children are. */
  function sum(folder) {
    const live = folder.children.some((c) => !ENDED.has(c.phase));
    const bad = folder.children.find((c) => BAD.has(c.phase));
    folder.phase = live ? "RUNNING" : bad?.phase ?? "SUCCEEDED";
    folder.start = folder.children.reduce((m, c) => Math.min(m, c.start ?? m), Infinity);
    folder.end = live ? undefined : folder.children.reduce((m, c) => Math.max(m, c.end ?? m), 0);
  }
  function makeRow({ node: n }) {
    const mark = phaseMark();
    const [twisty, label, badges, counts, duration, fill] =
      [h("span.twisty", { "aria-hidden": "true" }), h("span.label"), h("span.badges"), h("span.counts"), h("span.duration"), h("i")];
    const row = h("div.row", { role: "treeitem", id: `row-${n.key.replace(/\s/g, "_")}` },
      twisty, mark, h("span.name", null, label, badges, counts), duration, h("span.timeline", { "aria-hidden": "true" }, fill));
    row.node = n;
    row.update = ({ node: n, level, index }) => {
      const open = !closed.has(n.key) || !!filter.value;
      row.style.transform = `translateY(${index * ROW}px)`;
      row.style.setProperty("--level", level);
      set(row, "aria-level", level);
      set(row, "aria-expanded", n.children.length ? open : null);
      set(row, "aria-selected", n.key === selected);
      set(row, "data-action", n.group ? null : n.key);
      row.classList.toggle("group", !!n.group);
      put(twisty, n.children.length ? (open ? "▾" : "▸") : "");
      mark.show(n.phase);
      put(label, n.label);
      set(row, "title", n.group ? `group ${n.label}` : dotted(n.action && names(n.action).full, n.key));
      put(badges, dotted(n.group && "group", n.trace && "trace", n.attempts > 1 && `${n.attempts} attempts`));
      const leaves = n.children.flatMap((c) => (c.group ? c.children : [c]));
      const count = (phases) => leaves.filter((c) => phases.has(c.phase)).length;
      put(counts, leaves.length ? dotted(`${count(ENDED)}/${leaves.length}`, count(BAD) && `${count(BAD)} ✕`) : "");
      put(duration, n.start && Number.isFinite(n.start) ? lasted((n.end ?? now()) - n.start) : "");
      const [from, to] = [nodes.get("a0").start, nodes.get("a0").end ?? now()];
      const at = (t) => Math.min(100, Math.max(0, ((t - from) / Math.max(1, to - from)) * 100));
      set(fill, "data-phase", n.phase);
      fill.style.left = `${at(n.start ?? to)}%`;
      fill.style.width = `${Math.max(0, at(n.end ?? to) - at(n.start ?? to))}%`;
    };
    return row;
  }
  const draw = perFrame(() => {
    if (stale && performance.now() - last > 100) { // Flattening 10,000 actions takes some ms: not on every frame.
      flatten();
      last = performance.now();
    } else if (stale) setTimeout(draw, 100);
    const first = Math.max(0, Math.floor(tree.scrollTop / ROW) - 10);
    const inSight = rows.slice(first, first + Math.ceil(tree.clientHeight / ROW) + 20).map((row, i) => ({ ...row, index: first + i }));
    canvas.style.height = `${rows.length * ROW}px`;
    keyed(canvas, inSight, (row) => row.node.key, makeRow);
    const active = canvas.byKey.get(selected);
    set(tree, "aria-activedescendant", active?.id);
    empty.hidden = rows.length > 0;
    put(empty, filter.value ? "No action matches." : "Loading…");
  });
  const change = () => { stale = true; draw(); };
  function go(index) {
    const row = rows[Math.min(rows.length - 1, Math.max(0, index))];
    if (!row) return;
    selected = row.node.key;
    const top = rows.indexOf(row) * ROW;
    if (top < tree.scrollTop) tree.scrollTop = top;
    if (top + ROW > tree.scrollTop + tree.clientHeight) tree.scrollTop = top + ROW - tree.clientHeight;
    draw();
    if (!row.node.group) select(row.node.key);
  }
  function toggle(n, open = closed.has(n.key)) {
    if (open) closed.delete(n.key);
    else if (n.children.length) closed.add(n.key);
    change();
  }
  function onKey(event) {
    const at = rows.findIndex((row) => row.node.key === selected);
    const n = rows[at]?.node;
    const page = Math.floor(tree.clientHeight / ROW);
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1, PageDown: at + page, PageUp: at - page };
    if (event.key in moves) go(moves[event.key]);
    else if (!n) return;
    else if (event.key === "Enter" || event.key === " ") toggle(n);
    else if (event.key === "ArrowRight" && closed.has(n.key)) toggle(n, true);
    else if (event.key === "ArrowRight" && n.children.length) go(at + 1);
    else if (event.key === "ArrowLeft" && n.children.length && !closed.has(n.key)) toggle(n, false);
    else if (event.key === "ArrowLeft" && n.parent) go(rows.findIndex((row) => row.node === n.parent));
    else return;
    event.preventDefault();
  }
  function onClick(event) {
    const row = event.target.closest(".row");
    if (!row) return;
    if (row.node.group || event.target.closest(".twisty")) toggle(row.node);
    go(rows.findIndex((r) => r.node === row.node));
  }
  const filter = h("input", { type: "search", placeholder: "Filter by name or phase", "aria-label": "Filter the actions", oninput: change });
  const count = h("span.quiet");
  const canvas = h("div.canvas", { role: "presentation" });
  const empty = h("p.quiet", { role: "status" }, "Loading…");
  const tree = h("div.tree",
    { role: "tree", tabindex: 0, "aria-label": "Actions", onscroll: draw, onkeydown: onKey, onclick: onClick }, canvas, empty);
  new ResizeObserver(draw).observe(tree);
  return {
    element: h("section.actions", null, h("div.bar", null, filter, count), tree),
    draw,
    take: (list) => { list.forEach(put1); change(); },
    node: (key) => nodes.get(key),
    mark: (key) => { selected = key; draw(); },
  };
}

/** Asks for a reason and sends the abort. */
function confirmAbort(what, send) {
  const reason = h("input", { name: "reason", maxlength: 1000, placeholder: "Why? (optional)", "aria-label": "Reason" });
  const problem = h("p.problem", { role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    try {
      await send(reason.value);
      dialog.close();
    } catch (error) { put(problem, error.message); }
  };
  const dialog = h("dialog", { "aria-label": `Abort ${what}`, onclose: () => dialog.remove() },
    h("form", { onsubmit: submit }, h("h2", null, `Abort ${what}?`), h("p", null, "Everything below it stops too. This cannot be undone."),
      reason, problem, h("div.bar", null,
        h("button", { type: "button", onclick: () => dialog.close() }, "Keep running"), h("button.danger", null, "Abort"))));
  document.body.append(dialog);
  dialog.showModal();
  reason.focus();
}

function errorBox(error, title) {
  const kind = { KIND_USER: "raised by the task", KIND_SYSTEM: "of the system" }[error.kind];
  return h("div.error", { role: "alert" }, h("strong", null, title ?? error.code ?? "Error"), kind && h("span.quiet", null, ` ${kind}`),
    h("pre", { tabindex: 0 }, error.message ?? ""));
}

/** Everything about one action: error, attempts, log, values, report. */
function actionPanel(actionId, wanted, onAttempt, signal) {
  let details, drawn, shownData = "", shownLog, shownReport;
  const [head, attempts, logs, inputs, outputs, report] = Array.from({ length: 6 }, () => h("div"));
  const element = h("section.panel", { "aria-label": "Action" }, head, attempts, logs, inputs, outputs, report);
  const mark = phaseMark(), duration = h("span.duration");
  const ended = () => ENDED.has(phaseOf(details.status));
  const attemptNo = () => (details.attempts ?? []).find((a) => a.attempt === wanted) ?? details.attempts?.at(-1);
  const isTrace = () => !!details.metadata?.trace;

  let asking = false, again = false;
  async function refresh() {
    if (asking) { again = true; return; }
    asking = true;
    try {
      ({ details } = await ask("workflow.RunService/GetActionDetails", { actionId }, signal));
      draw();
    } catch (error) {
      if (!signal.aborted) head.replaceChildren(message("There is nothing to show", error.message));
    }
    await sleep(300);
    asking = false;
    if (again && !signal.aborted) { again = false; refresh(); }
  }
  function draw() {
    const text = JSON.stringify([details, wanted]);
    if (text !== drawn) {
      drawn = text;
      drawHead();
      drawAttempts();
    }
    drawLog();
    drawData();
    drawReport();
  }
  function drawHead() {
    const { short, full } = names(details);
    mark.show(phaseOf(details.status));
    const stop = () => confirmAbort(`action ${short}`, (reason) => call("workflow.RunService/AbortAction", { actionId, reason }));
    const { errorInfo, abortInfo } = details;
    const stoppable = !ended() && actionId.name !== "a0";
    const environment = details.metadata?.environmentName;
    head.replaceChildren(...[
      h("div.bar", null, h("h2", null, short), mark, duration,
        stoppable && h("button", { type: "button", onclick: stop }, "Abort action")),
      h("p.quiet.id", null, dotted(full !== short && full, environment && `environment ${environment}`, actionId.name)),
      errorInfo && errorBox(errorInfo),
      abortInfo && errorBox({ message: abortInfo.reason }, `Aborted${abortInfo.abortedBy ? ` by ${who(abortInfo.abortedBy)}` : ""}`),
      isTrace() && h("p.quiet", null, "A trace: a function recorded inside its parent, whose log has what it printed."),
    ].filter(Boolean));
    tick();
  }
  function drawAttempts() {
    const list = details.attempts ?? [];
    const chosen = attemptNo()?.attempt;
    const items = list.map((a) => {
      const choose = () => { wanted = a.attempt; onAttempt(wanted); draw(); };
      const steps = (a.phaseTransitions ?? []).filter((t) => !ENDED.has(phaseOf(t)))
        .map((t) => `${PHASES[phaseOf(t)]?.[1]} ${t.endTime ? span(t) : "…"}`).join(" → ");
      return h("li", null,
        h("button.attempt", { type: "button", "aria-pressed": String(a.attempt === chosen), onclick: choose }, `Attempt ${a.attempt}`),
        phaseMark(phaseOf(a)), h("span.quiet", null, steps),
        a.errorInfo && (list.length > 1) && errorBox(a.errorInfo));
    });
    const title = h("h3", null, items.length > 1 ? "Attempts" : "Attempt");
    attempts.replaceChildren(...(isTrace() || !items.length ? [] : [title, h("ol.attempts", null, items)]));
  }
  function drawLog() {
    const attempt = attemptNo();
    if (isTrace() || !attempt || shownLog?.attempt === attempt.attempt) return;
    shownLog?.stop.abort();
    shownLog = { attempt: attempt.attempt, stop: new AbortController() };
    const isOver = () => ENDED.has(phaseOf(details.attempts.find((a) => a.attempt === attempt.attempt)));
    logs.replaceChildren(logView(actionId, attempt.attempt, isOver, AbortSignal.any([signal, shownLog.stop.signal])));
  }
  async function drawData() {
    const state = ended() ? "all" : "inputs";
    if (shownData === state) return;
    shownData = state;
    const spec = details.task?.taskTemplate ?? details.trace;
    try {
      const data = await ask("dataproxy.DataProxyService/GetActionData", { actionId }, signal);
      for (const [side, host] of Object.entries({ inputs, outputs })) {
        const literals = data[side]?.literals ?? [];
        const pairs = await values(literals, spec?.interface?.[side], signal);
        host.replaceChildren(...(pairs.length ? [h("h3", null, side === "inputs" ? "Inputs" : "Outputs"), valueList(pairs)] : []));
      }
    } catch (error) {
      if (!signal.aborted) inputs.replaceChildren(h("h3", null, "Inputs and outputs"), h("p.quiet", null, error.message));
    }
  }
  async function drawReport(reload = false) {
    const attempt = attemptNo();
    const there = attempt?.outputs?.reportUri;
    // A task that writes one may have flushed it already while it runs.
    if (!there && (ended() || !details.task?.taskTemplate?.metadata?.generatesDeck)) {
      shownReport = undefined;
      return report.replaceChildren();
    }
    const state = `${attempt?.attempt} ${there ?? ""}`;
    if (!attempt || (state === shownReport && !reload)) return;
    shownReport = state;
    const button = h("button", { type: "button", onclick: () => drawReport(true) }, "Reload");
    const bar = h("div.bar", null, h("h3", null, "Report"), button);
    try {
      const { preSignedUrls } = await ask("dataproxy.DataProxyService/CreateDownloadLink",
        { artifactType: "ARTIFACT_TYPE_REPORT", actionAttemptId: { actionId, attempt: attempt.attempt } }, signal);
      const src = preSignedUrls.signedUrl[0];
      bar.append(h("a", { href: src, target: "_blank", rel: "noopener noreferrer" }, "Open alone"));
      // Users' HTML: its scripts may run, but as a stranger to this page.
      report.replaceChildren(bar, h("iframe", { src, sandbox: "allow-scripts", title: "Report", referrerpolicy: "no-referrer" }));
    } catch (error) {
      if (!signal.aborted) report.replaceChildren(bar, h("p.quiet", null, error.code === "not_found" ? "No report yet." : error.message));
    }
  }
  const tick = () => details && put(duration, span(details.status));
  refresh();
  return { element, refresh, tick, choose: (attempt) => { wanted = attempt; if (details) draw(); } };
}

const who = ({ user, application } = {}) => user?.spec?.firstName || user?.id?.subject || application?.id?.subject || "";

function runPage(place, name, signal) {
  const run = { project: place.project, domain: place.domain, name };
  const asked = () => {
    const query = new URLSearchParams(location.search);
    return { action: query.get("i") || "a0", attempt: Number(query.get("attempt")) || undefined };
  };
  let current, panel, over = false;
  const mark = phaseMark(), title = h("h1", null, name), facts = h("p.quiet"), duration = h("span.duration");
  const abort = h("button.danger", { type: "button", hidden: true, onclick: () =>
    confirmAbort(`run ${name}`, (reason) => call("workflow.RunService/AbortRun", { runId: run, reason })) }, "Abort run");
  const tree = actionTree((key) => open(key));
  const side = h("div.side");

  function open(key, attempt, record = true) {
    if (current?.key === key) return attempt && panel.choose(attempt);
    current?.stop.abort();
    current = { key, stop: new AbortController() };
    const query = (n) => `?i=${encodeURIComponent(key)}${n ? `&attempt=${n}` : ""}`;
    if (record) history.pushState(null, "", query(attempt));
    const chosen = (n) => history.replaceState(null, "", query(n));
    panel = actionPanel({ run, name: key }, attempt, chosen, AbortSignal.any([signal, current.stop.signal]));
    side.replaceChildren(panel.element);
  }
  function fromAddress() {
    const { action, attempt } = asked();
    tree.mark(action);
    open(action, attempt, false);
  }
  function tick() {
    const root = tree.node("a0")?.action;
    if (root) {
      const phase = phaseOf(root.status);
      const { full, short } = names(root);
      mark.show(phase);
      put(title, full ?? short);
      put(duration, span(root.status));
      const source = (root.metadata?.source ?? "").replace(/RUN_SOURCE_|UNSPECIFIED/g, "").toLowerCase().replaceAll("_", " ");
      const by = who(root.metadata?.executedBy);
      put(facts, dotted(name, `started ${clock(root.status?.startTime)}`, by && `by ${by}`, source && `from ${source}`));
      abort.hidden = ENDED.has(phase);
      document.title = `${PHASES[phase]?.[0] ?? ""} ${short} · ${name} · Aloft`;
    }
    tree.draw();
    panel?.tick();
  }
  const take = ({ enrichedActions = [] }) => {
    tree.take(enrichedActions);
    if (enrichedActions.some((e) => e.action.id.name === current.key)) panel.refresh();
    requestAnimationFrame(tick);
  };
  addEventListener("popstate", fromAddress);
  const ticking = setInterval(() => (over ? clearInterval(ticking) : tick()), 1000);
  fromAddress();
  function end() {
    over = true;
    tick();
    panel.refresh();
  }
  function fail(error) {
    over = true;
    current.stop.abort();
    const title = error.code === "not_found" ? "There is no such run" : "This run cannot be shown";
    const back = h("p", null, h("a", { href: path(place, "runs") }, "All runs of this project"));
    main.replaceChildren(message(title, error.message, back));
  }
  follow("workflow.RunService/WatchActions", { runId: run }, signal, take).then(end, fail);
  return h("section.runpage", null,
    h("div.runhead", null, h("div.bar", null, mark, title, duration, abort), facts), h("div.split", null, tree.element, side));
}

// === Where to ===

async function show() {
  const signal = new AbortController().signal;
  const [domainWord, domain, projectWord, project, noun = "runs", name] =
    location.pathname.split("/").slice(2).filter(Boolean).map(decodeURIComponent);
  // The SDK's address of a run that it carries out itself and reports.
  const kind = noun === "tracked-runs" ? "runs" : noun;
  let place = domainWord === "domain" && projectWord === "project" && project ? { project, domain } : undefined;
  const stray = domainWord !== undefined && !place;
  // A run's page does not wait for the list of projects.
  if (kind === "runs" && name && place) main.replaceChildren(runPage(place, name, signal));
  place = await header(place, signal);
  if (kind === "runs" && name) return;
  document.title = `${name ?? kind} · ${place.project} · Aloft`;
  if (stray) main.replaceChildren(message("There is no such page", `Nothing is at ${location.pathname}.`));
  else if (kind === "runs") main.replaceChildren(runList(place, undefined, signal));
  else if (kind === "tasks") main.replaceChildren(...[name ? await taskPage(place, name, signal) : await taskList(place, signal)].flat());
  else main.replaceChildren(message("This page comes with the console", `Until then the command line shows ${kind}: flyte get --help.`));
}

show().catch((error) => main.replaceChildren(message("This page cannot be shown", error.message)));
