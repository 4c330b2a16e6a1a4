"use strict";
// The status page: follows /api/v1/events and writes what changed into the document. Whatever a client chose (its name)
// is only ever put there as text.

const WINDOW = 300; // seconds of history; less is shown while there is less
const SHORTEST = 60;
const COLOURS = ["#56b4e9", "#e69f00", "#2bb58a", "#f0e442", "#cc79a7", "#e8743b", "#9b8cf0", "#a3c644"];
const STATES = {
  running: "--running", idle: "--idle", stopping: "--stopping", waiting: "--waiting", stopped: "--stopped",
  unyielding: "--trouble", disconnected: "--trouble", dead: "--trouble", exited: "--stopped",
};

const byId = (id) => document.getElementById(id);
const samples = []; // {up, clients: Map(client -> {activity, resident})}
const switches = new Map(); // number -> switch
const paged = new Map(); // process -> {up, now, rate}: what the driver did to its managed memory
let drawn = -1; // up_seconds when the timelines were last drawn
let known = null; // what was last announced

// ---- texts

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
function bytes(count) {
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) { count /= 1024; unit += 1; }
  const digits = unit === 0 || count >= 100 || Number.isInteger(count) ? 0 : count >= 10 ? 1 : 2;
  return `${count.toFixed(digits)} ${UNITS[unit]}`;
}

function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${Math.max(0, seconds).toFixed(1)} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor(whole / 3600) % 24} h`;
}

/// The pod where there is one, else the program.
function who(client) {
  const pod = client.owner?.pod;
  if (!pod) return client.name || "?";
  const container = client.owner.container ? `/${client.owner.container}` : "";
  return `${client.owner.namespace || "?"}/${pod}${container}`;
}

/// The pod, else the container, else none.
const pod = (process) => process.owner?.pod ? who(process) : process.owner?.container || "-";

const colour = (client) => COLOURS[(client - 1) % COLOURS.length];
const sum = (client, of) => (client.devices || []).reduce((total, held) => total + (held[of] || 0), 0);

// ---- the document

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function draw(tag, properties, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/// Children of `parent`, one for each item, kept from one state to the next so that focus and reading position stay.
function keyed(parent, items, key, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = old.get(name);
    old.delete(name);
    if (!child) {
      child = create(item);
      child.dataset.key = name;
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, item);
  }
  for (const child of old.values()) child.remove();
}

function texts(parent, lines) {
  keyed(parent, lines.map((text, index) => [index, text]), ([index]) => index, () => make("li"),
    (item, [, text]) => say(item, text));
}

function row(cells) {
  return () => make("tr", {}, ...Array.from({ length: cells }, (_, n) =>
    n === 0 ? make("th", { scope: "row" }) : make("td")));
}

function fill(line, values) {
  values.forEach((value, n) => { if (value !== null) say(line.children[n], value); });
}

const swatch = (paint) => {
  const box = make("span", { class: "swatch", "aria-hidden": "true" });
  box.style.background = paint;
  return box;
};

// ---- one card

function card(device) {
  const id = `gpu-${device.uuid}`;
  const section = make("section", { "aria-labelledby": id, class: "device" });
  const title = make("div", { class: "title" }, make("h2", { id }), make("span", { class: "pill turns" }),
    make("span", { class: "quiet uuid" }));
  const key = make("ul", { class: "key", "aria-label": "Colours of the timeline" });
  for (const state of ["running", "idle", "stopping", "waiting", "stopped", "unyielding"]) {
    const label = state === "unyielding" ? "unyielding, disconnected or dead" : state;
    key.append(make("li", {}, swatch(`var(${STATES[state]})`), label));
  }
  key.append(make("li", {}, "| a switch: the client came"));
  section.append(title, make("p", { class: "quiet need" }), make("div", { class: "bar", role: "img" }),
    make("ul", { class: "shares", "aria-label": "Shares of the card" }),
    make("h3", {}, "Queue"), make("ol", { class: "queue" }), make("p", { class: "quiet empty" }, "Nobody."),
    make("h3", {}, "The last minutes"), make("div", { class: "lanes" }),
    make("div", { class: "axis", "aria-hidden": "true" }, make("span", {}), make("span", {}, "now")),
    key);
  return section;
}

function shares(device, clients) {
  const parts = clients
    .map((client) => [client, client.devices.find((held) => held.uuid === device.uuid)])
    .filter(([, held]) => held && held.resident > 0)
    .map(([client, held]) => ({
      key: `c${client.client}`, short: String(client.client), name: `client ${client.client}, ${who(client)}`,
      size: held.resident, paint: colour(client.client),
    }));
  const rest = [
    ["granted", "granted, not filled", device.granted - device.resident, "var(--granted)"],
    ["foreign", "foreign", device.foreign, "var(--foreign)"],
    ["reserve", "reserve", device.reserve, "var(--reserve)"],
    ["free", "free", device.free, "var(--free)"],
  ];
  for (const [key, name, size, paint] of rest) {
    if (size > 0) parts.push({ key, short: "", name, size, paint });
  }
  return parts;
}

function showCard(section, device, state) {
  const part = (name) => section.querySelector(`.${name}`);
  const here = state.clients.filter((client) => client.devices.some((held) => held.uuid === device.uuid));
  say(section.querySelector("h2"), `GPU ${device.index}: ${device.name}`);
  say(part("turns"), device.contended ? "in turns" : "fits");
  part("turns").className = `pill turns ${device.contended ? "warn" : "good"}`;
  say(part("uuid"), device.uuid);
  const percent = device.capacity > 0 ? Math.round(100 * device.needed / device.capacity) : 0;
  say(part("need"), `Clients need ${bytes(device.needed)} of ${bytes(device.capacity)} (${percent} %); `
    + `${bytes(device.swapped)} of theirs is on the host.`);

  const parts = shares(device, here);
  const all = parts.reduce((total, share) => total + share.size, 0) || 1;
  keyed(part("bar"), parts, (share) => share.key, () => make("span"), (piece, share) => {
    piece.style.flex = `${share.size / all} 1 0`;
    piece.style.background = share.paint;
    say(piece, share.size / all > 0.03 ? share.short : "");
  });
  const label = parts.map((share) => `${share.name}: ${bytes(share.size)}`).join("; ");
  if (part("bar").getAttribute("aria-label") !== label) part("bar").setAttribute("aria-label", label);
  keyed(part("shares"), parts, (share) => share.key,
    (share) => make("li", {}, swatch(share.paint), make("span")),
    (item, share) => say(item.lastChild, `${share.name}: ${bytes(share.size)}`));

  const running = here.filter((client) => ["running", "idle", "stopping", "unyielding"].includes(client.activity));
  const waiting = here.filter((client) => client.activity === "waiting")
    .sort((a, b) => b.waiting_seconds - a.waiting_seconds);
  part("empty").hidden = running.length + waiting.length > 0;
  keyed(part("queue"), [...running, ...waiting], (client) => client.client, () => make("li"), (item, client) => {
    const lease = client.lease_seconds;
    let doing = client.activity;
    if (client.activity === "waiting") doing = `waits for ${age(client.waiting_seconds)}`;
    else if (typeof lease === "number") doing += lease > 0 ? `, ${lease.toFixed(1)} s of its lease left` : ", lease over";
    say(item, `client ${client.client}, ${who(client)}: ${doing}`);
  });
  if (drawn !== state.up_seconds) return;
  showLanes(part("lanes"), here, state);
  say(part("axis").firstChild, `${age(state.up_seconds - begins(state))} ago`);
}

/// When the picture of the past begins.
function begins(state) {
  const first = samples.length ? samples[0].up : state.up_seconds;
  return state.up_seconds - Math.min(WINDOW, Math.max(SHORTEST, state.up_seconds - first));
}

/// One lane per client: a colour for what it did, a mark for each switch that it came by.
function showLanes(lanes, clients, state) {
  const begin = begins(state), length = state.up_seconds - begin;
  lanes.replaceChildren();
  for (const client of clients) {
    const svg = draw("svg", { viewBox: `0 0 ${length} 10`, preserveAspectRatio: "none", role: "img" });
    let from = null, doing = null, ran = 0, seen = 0;
    const finish = (to) => {
      if (!doing) return;
      const piece = draw("rect", { x: from, y: 0, width: Math.max(0.1, to - from), height: 10 });
      piece.style.fill = `var(${STATES[doing] ?? "--stopped"})`;
      svg.append(piece);
    };
    for (const sample of samples) {
      const at = Math.max(0, sample.up - begin), did = sample.clients.get(client.client)?.activity ?? null;
      if (did) { seen += 1; ran += did === "running"; }
      if (did !== doing) { finish(at); from = at; doing = did; }
    }
    finish(length);
    let came = 0;
    for (const change of switches.values()) {
      if (change.client !== client.client || change.up_seconds < begin) continue;
      came += 1;
      const x = change.up_seconds - begin;
      svg.append(draw("line", { class: "mark", x1: x, x2: x, y1: 0, y2: 10 }));
    }
    const share = seen ? Math.round(100 * ran / seen) : 0;
    svg.setAttribute("aria-label", `client ${client.client}: ${client.activity} now, seen running ${share} % `
      + `of the time, came by ${came} switches`);
    lanes.append(make("span", {}, swatch(colour(client.client)), `${client.client} ${who(client)}`), svg);
  }
}

// ---- tables

function showClients(state) {
  byId("no-clients").hidden = state.clients.length > 0;
  keyed(byId("clients").tBodies[0], state.clients, (client) => client.client, (client) => {
    const line = row(10)();
    line.dataset.client = client.client;
    line.lastChild.append(draw("svg", { class: "spark", preserveAspectRatio: "none", role: "img" },
      draw("polyline", {})));
    return line;
  }, (line, client) => {
    const waits = client.activity === "waiting";
    const lasts = waits ? client.waiting_seconds : client.activity === "running" ? 0 : client.idle_seconds;
    const pinned = (client.pinned ? ", pinned" : "") + (client.held_out ? ", held out" : "");
    const weight = client.weight === undefined || client.weight === 1 ? "" : ` x ${client.weight}`;
    fill(line, [String(client.client), `${who(client)} (pid ${client.process.pid})`, client.activity + pinned,
      lasts > 0 ? age(lasts) : "-", (client.priority ?? "normal") + weight, bytes(sum(client, "needed")),
      bytes(sum(client, "resident")), bytes(sum(client, "swapped")), bytes(sum(client, "unswappable")), null]);
    if (drawn === state.up_seconds) showSpark(line.querySelector("svg"), client, state);
  });
  texts(byId("notes"), state.clients.flatMap((client) =>
    (client.notes || []).map((note) => `client ${client.client}: ${note}`)));
}

function showSpark(svg, client, state) {
  const begin = begins(state);
  svg.setAttribute("viewBox", `0 0 ${state.up_seconds - begin} 20`);
  const points = samples.filter((sample) => sample.clients.has(client.client))
    .map((sample) => [Math.max(0, sample.up - begin), sample.clients.get(client.client).resident]);
  const most = Math.max(1, ...points.map(([, held]) => held), sum(client, "needed"));
  const least = Math.min(...points.map(([, held]) => held), most);
  svg.firstChild.setAttribute("points",
    points.map(([at, held]) => `${at.toFixed(1)},${(19 - 18 * held / most).toFixed(1)}`).join(" "));
  svg.setAttribute("aria-label", `between ${bytes(least)} and ${bytes(most)}`);
}

function showSwitches(state) {
  const latest = [...switches.values()].slice(-12).reverse();
  const name = new Map(state.clients.map((client) => [client.client, who(client)]));
  keyed(byId("switches").tBodies[0], latest, (change) => change.number, row(8), (line, change) => {
    fill(line, [String(change.number), age(state.up_seconds - change.up_seconds),
      `${change.client} ${name.get(change.client) ?? `pid ${change.pid}, gone`}`, `${change.seconds.toFixed(3)} s`,
      `${change.drain_seconds.toFixed(3)} s`, bytes(change.bytes_out), bytes(change.bytes_in), bytes(change.clean)]);
  });
}

/// Clients and others whose managed memory the driver has moved, each with its figures so far.
function pagers(state) {
  const of = (totals) => ({
    faults: totals.uvm_faults || 0, cpu: totals.uvm_cpu_faults || 0, in: totals.uvm_to_device || 0,
    all: totals.uvm_bytes || 0,
  });
  return [...state.clients.map((client) => ({ process: client.process, name: who(client), now: of(client.totals) })),
    ...state.processes.map((other) => ({ process: other.process, name: other.name, now: of(other) }))]
    .filter(({ now }) => now.faults + now.cpu + now.all > 0)
    .map((pager) => ({ ...pager, key: `${pager.process.pid}-${pager.process.start}` }));
}

/// By the second, over the last two: the agent reads the figures twice a second.
function rates(pager, up) {
  const last = paged.get(pager.key);
  if (last && up >= last.up && up - last.up < 2) return last.rate;
  const rate = {};
  for (const of of ["faults", "cpu", "in", "all"]) {
    rate[of] = last && up > last.up ? Math.max(0, pager.now[of] - last.now[of]) / (up - last.up) : 0;
  }
  paged.set(pager.key, { up, now: pager.now, rate });
  return rate;
}

function showPaging(state) {
  const all = pagers(state), keys = new Set(all.map((pager) => pager.key));
  for (const key of paged.keys()) if (!keys.has(key)) paged.delete(key);
  byId("paging-section").hidden = all.length === 0;
  keyed(byId("paging").tBodies[0], all, (pager) => pager.key, row(7), (line, pager) => {
    const rate = rates(pager, state.up_seconds);
    const speed = (count) => `${bytes(Math.round(count))}/s`;
    fill(line, [String(pager.process.pid), pager.name, `${Math.round(rate.faults)}/s`, `${Math.round(rate.cpu)}/s`,
      speed(rate.in), speed(Math.max(0, rate.all - rate.in)), bytes(pager.now.all)]);
  });
}

function showForeign(state) {
  byId("foreign-section").hidden = state.processes.length === 0;
  keyed(byId("foreign").tBodies[0], state.processes, (other) => `${other.process.pid}-${other.process.start}`, row(6),
    (line, other) => fill(line, [String(other.process.pid), other.name, pod(other), bytes(other.measured),
      bytes(other.managed), age(other.idle_seconds)]));
}

// ---- what comes

function forget(up) {
  while (samples.length && samples[0].up < up - WINDOW) samples.shift();
  for (const [number, change] of switches) {
    if (change.up_seconds < up - WINDOW && switches.size > 12) switches.delete(number);
  }
}

function history(past) {
  samples.length = 0;
  switches.clear();
  drawn = -1;
  for (const sample of past.samples) {
    const clients = sample.clients.map(([client, activity, resident]) => [client, { activity, resident }]);
    samples.push({ up: sample.up_seconds, clients: new Map(clients) });
  }
  for (const change of past.switches) switches.set(change.number, change);
}

function show(state) {
  if (samples.length && state.up_seconds < samples[samples.length - 1].up - 1) { // another agent
    samples.length = 0;
    switches.clear();
    paged.clear();
    drawn = -1;
  }
  if (!samples.length || state.up_seconds > samples[samples.length - 1].up) {
    const clients = state.clients.map((client) =>
      [client.client, { activity: client.activity, resident: sum(client, "resident") }]);
    samples.push({ up: state.up_seconds, clients: new Map(clients) });
  }
  for (const change of state.switches.recent) switches.set(change.number, change);
  forget(state.up_seconds);
  if (document.hidden) return;
  if (drawn < 0 || state.up_seconds - drawn >= 1) drawn = state.up_seconds;

  say(byId("release"), state.release);
  say(byId("up"), age(state.up_seconds));
  say(byId("switch-count"), String(state.switches.count));
  const { sum: took, count } = state.switches.seconds;
  say(byId("switch-mean"), count ? `, ${(took / count).toFixed(3)} s each` : "");
  say(byId("host"), `host memory ${bytes(state.host.handed_out)} of ${bytes(state.host.budget)}`);
  const devices = [...state.devices].sort((a, b) => a.index - b.index);
  keyed(byId("devices"), devices, (device) => device.uuid, card, (section, device) => showCard(section, device, state));
  showClients(state);
  showSwitches(state);
  showPaging(state);
  showForeign(state);
  announce(state);
}

function readiness(now) {
  const pill = byId("ready");
  pill.hidden = false;
  say(pill, now.ready ? "ready" : "not ready");
  pill.className = `pill ${now.ready ? "good" : "bad"}`;
  texts(byId("missing"), now.missing.map((missing) => `missing: ${missing.part}: ${missing.why}`));
}

/// Says aloud only what changes seldom: who came and left, and where taking turns begins or ends.
function announce(state) {
  const now = new Map(state.clients.map((client) => [`client ${client.client}, ${who(client)}`, "connected"]));
  for (const device of state.devices) now.set(`GPU ${device.index}`, device.contended ? "takes turns" : "has room for all");
  if (known) {
    const news = [...now].filter(([name, is]) => known.get(name) !== is).map(([name, is]) => `${name} ${is}`);
    for (const name of known.keys()) if (!now.has(name)) news.push(`${name} left`);
    if (news.length) say(byId("said"), `${news.slice(0, 4).join("; ")}.`);
  }
  known = now;
}

function link(text, kind) {
  const pill = byId("link");
  say(pill, text);
  pill.className = `pill ${kind}`;
}

/// Without a seat among the listeners the page asks now and then.
function ask() {
  fetch("/api/v1/state").then((answer) => answer.json()).then((state) => {
    link("every 3 s", "warn");
    show(state);
  }).catch(() => link("no answer", "bad")).finally(() => setTimeout(ask, 3000));
}

function listen() {
  const events = new EventSource("/api/v1/events");
  events.addEventListener("history", (event) => history(JSON.parse(event.data)));
  events.addEventListener("readiness", (event) => readiness(JSON.parse(event.data)));
  events.addEventListener("state", (event) => {
    link("live", "good");
    show(JSON.parse(event.data));
  });
  events.onerror = () => {
    // The browser connects again by itself, unless it was refused.
    if (events.readyState === EventSource.CLOSED) ask();
    else link("connection lost", "bad");
  };
}

say(byId("node"), `on ${location.hostname}`);
document.title = `nvshare on ${location.hostname}`;
listen();
