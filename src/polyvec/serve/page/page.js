"use strict";
const $ = id => document.getElementById(id);
const VIEWS = ["search", "compare", "map"];
// Colours of Okabe and Ito, told apart by the colour-blind; shapes tell equal ones apart.
const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#777777"];
// Five steps of a scale that is even in lightness, for numbers.
const STEPS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#d8c800"];
let key = "", indexes = [], models = [];

async function ask(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer");
  }
  const found = await response.json().catch(() => ({}));
  if (response.status === 401) $("key-form").hidden = false;
  if (!response.ok) throw new Error(found.error ? found.error.message : `status ${response.status}`);
  return found;
}
function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}
async function attempt(work) {
  document.body.dataset.state = "busy";
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  }
  document.body.dataset.state = "idle";
}
function make(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}
function options(select, names, chosen) {
  select.replaceChildren(...names.map(name => {
    const made = make("option", name);
    made.value = name;
    made.selected = name === chosen;
    return made;
  }));
}

// ---- views ---------------------------------------------------------------------------------
// The address says all that a view shows, so that it can be sent: #search?query=cats&mode=hybrid

function parts() {
  const [view, rest = ""] = location.hash.slice(1).split("?");
  return [VIEWS.includes(view) ? view : "search", new URLSearchParams(rest)];
}
function show() {
  const [view, given] = parts();
  for (const each of VIEWS) {
    $(each).hidden = each !== view;
    if (each === view) $(`to-${each}`).setAttribute("aria-current", "page");
    else $(`to-${each}`).removeAttribute("aria-current");
  }
  if (view === "search" && given.has("query")) {
    for (const id of ["index", "query", "mode", "filter", "top"]) if (given.has(id)) $(id).value = given.get(id);
    attempt(search);
  }
  if (view === "compare" && given.has("query")) {
    $("compare-query").value = given.get("query");
    for (const id of ["left", "right", "texts"]) if (given.has(id)) $(id).value = given.get(id);
    attempt(compare);
  }
  if (view === "map" && indexes.length) {
    if (given.has("index")) $("map-index").value = given.get("index");
    fields();
    if (given.has("field")) $("field").value = given.get("field");
    attempt(load);
  }
}
function go(view, values) {
  const address = `#${view}?${new URLSearchParams(values)}`;
  if (location.hash === address) show();
  else location.hash = address;
}

// ---- search --------------------------------------------------------------------------------

async function search() {
  if (!indexes.length) throw new Error("the server has no index; start it with --index FOLDER");
  const wanted = $("explain").checked;
  const began = performance.now();
  const found = await ask("v1/search", {
    index: $("index").value, query: $("query").value, mode: $("mode").value, explain: wanted,
    top_k: Number($("top").value) || 10, ...($("filter").value.trim() ? { filter: $("filter").value } : {}),
  });
  const ms = Math.round(performance.now() - began);
  $("hits").replaceChildren(...found.results.map(each => hit(each)));
  say(found.results.length ? `${found.results.length} texts in ${ms} ms` : "nothing was found");
}
function hit(each) {
  const item = make("li"), head = make("div", "", "head");
  head.append(make("b", each.score.toFixed(3)), make("span", each.id));
  for (const one of (each.explanation || {}).components || [])
    head.append(make("span", `${one.name}: place ${one.rank}, ${one.score.toFixed(3)}`));
  item.append(head, marked(each));
  const tags = Object.entries(each.metadata).map(([name, value]) => `${name}: ${value}`).join(" · ");
  if (tags) item.append(make("div", tags, "tags"));
  return item;
}
function marked(each) {
  // Shares colour the words that carry the score; words of the query are underlined.
  const why = each.explanation || { shares: [], terms: {} };
  const body = make("div", "", "text"), shares = why.shares || [];
  const most = Math.max(1e-9, ...shares.map(one => one.score));
  const terms = new Set(Object.keys(why.terms || {}));
  let at = 0;
  for (const one of shares) {
    body.append(each.text.slice(at, one.start));
    const span = make("span", "", "share");
    span.style.setProperty("--w", String(Math.round(70 * Math.max(0, one.score) / most)));
    span.title = one.score.toFixed(4);
    const words = each.text.slice(one.start, one.end);
    if (terms.has(words.toLowerCase())) span.append(make("mark", words));
    else span.textContent = words;
    body.append(span);
    at = one.end;
  }
  body.append(each.text.slice(at));
  return body;
}
$("search-form").addEventListener("submit", event => {
  event.preventDefault();
  go("search", {
    index: $("index").value, query: $("query").value, mode: $("mode").value, top: $("top").value,
    ...($("filter").value.trim() ? { filter: $("filter").value } : {}),
  });
});

// ---- compare -------------------------------------------------------------------------------

async function ranked(name) {
  const query = $("compare-query").value;
  if (indexes.some(each => each.id === name)) {
    const found = await ask("v1/search", { index: name, query, top_k: 10 });
    return found.results.map(each => ({ key: each.id, score: each.score, text: each.text }));
  }
  const documents = $("texts").value.split("\n").filter(each => each.trim());
  if (!documents.length) throw new Error("write some texts for the model to rank, one a line");
  const found = await ask("v1/rerank", { model: name, query, documents });
  return found.results.slice(0, 10).map(each => ({ key: documents[each.index], score: each.relevance_score, text: documents[each.index] }));
}
async function compare() {
  const sides = await Promise.all([ranked($("left").value), ranked($("right").value)]);
  const keys = sides.map(side => new Set(side.map(each => each.key)));
  for (const [place, side] of ["left", "right"].entries()) {
    $(`${side}-name`).textContent = $(side).value;
    $(`${side}-hits`).replaceChildren(...sides[place].map(each => {
      const item = make("li", "", keys[1 - place].has(each.key) ? "both" : "");
      const head = make("div", "", "head");
      head.append(make("b", each.score.toFixed(3)), make("span", each.key === each.text ? "" : each.key));
      item.append(head, make("div", each.text, "text"));
      return item;
    }));
  }
  const shared = [...keys[0]].filter(each => keys[1].has(each)).length;
  const same = sides[0].filter((each, place) => sides[1][place] && sides[1][place].key === each.key).length;
  $("overlap").textContent = `${shared} of ${keys[0].size} texts in both, ${same} at the same place`;
  say("");
}
$("compare-form").addEventListener("submit", event => {
  event.preventDefault();
  go("compare", { left: $("left").value, right: $("right").value, query: $("compare-query").value, texts: $("texts").value });
});

// ---- map -----------------------------------------------------------------------------------

const canvas = $("canvas"), pen = canvas.getContext("2d");
let data = null, groups = [], groupOf = [], numeric = false, scale = 1, offsetX = 0, offsetY = 0, found = null, hover = -1;

function fields() {
  const chosen = indexes.find(each => each.id === $("map-index").value) || indexes[0];
  options($("field"), ["nothing", ...Object.keys(chosen ? chosen.fields : {})], $("field").value);
}
async function load() {
  say("the map is being made");
  const index = $("map-index").value, field = $("field").value;
  const asked = new URLSearchParams({ index, ...(field && field !== "nothing" ? { field } : {}) });
  data = await ask(`v1/map?${asked}`);
  colours();
  find();
  say(`${data.x.length.toLocaleString("en")} of ${data.total.toLocaleString("en")} texts, by ${data.how}`);
}
function colours() {
  const values = data.value;
  const known = values.filter(each => each !== null);
  numeric = known.length > 0 && known.every(each => typeof each === "number");
  if (!known.length) { groups = ["texts"]; groupOf = values.map(() => 0); }
  else if (numeric && new Set(known).size > 5) {
    const sorted = [...known].sort((a, b) => a - b);
    const cuts = [1, 2, 3, 4].map(n => sorted[Math.floor(n * sorted.length / 5)]);
    groups = [0, 1, 2, 3, 4].map(n => `${n ? cuts[n - 1] : sorted[0]} to ${n < 4 ? cuts[n] : sorted.at(-1)}`);
    groupOf = values.map(each => each === null ? -1 : cuts.filter(cut => each >= cut).length);
  } else {
    const counts = new Map();
    for (const each of known) counts.set(String(each), (counts.get(String(each)) || 0) + 1);
    groups = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 32).map(each => each[0]);
    groupOf = values.map(each => each === null ? -1 : groups.indexOf(String(each)));
    numeric = false;
  }
  $("legend").replaceChildren(...groups.map((name, g) => {
    const item = make("li"), icon = make("canvas");
    icon.width = icon.height = 28;
    const own = icon.getContext("2d");
    own.scale(2, 2);
    own.fillStyle = colour(g);
    mark(own, shape(g), 7, 7, 4.5);
    item.append(icon, name);
    return item;
  }));
}
const colour = g => g < 0 ? "#9996" : numeric ? STEPS[g] : COLOURS[g % COLOURS.length];
const shape = g => g < 0 || numeric ? 0 : Math.floor(g / COLOURS.length) % 4;
const shown = i => found === null || found.has(i);
const place = i => {
  const w = canvas.clientWidth, h = canvas.clientHeight, pad = 18;
  return [(pad + data.x[i] * (w - 2 * pad)) * scale + offsetX, (pad + (1 - data.y[i]) * (h - 2 * pad)) * scale + offsetY];
};
function mark(on, kind, x, y, r) {
  on.beginPath();
  if (kind === 0) on.arc(x, y, r, 0, 7);
  else if (kind === 1) on.rect(x - r, y - r, 2 * r, 2 * r);
  else if (kind === 2) { on.moveTo(x, y - 1.3 * r); on.lineTo(x + 1.2 * r, y + r); on.lineTo(x - 1.2 * r, y + r); on.closePath(); }
  else { on.moveTo(x, y - 1.4 * r); on.lineTo(x + 1.4 * r, y); on.lineTo(x, y + 1.4 * r); on.lineTo(x - 1.4 * r, y); on.closePath(); }
  on.fill();
}
function draw() {
  if (!data) return;
  const ratio = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  canvas.width = w * ratio; canvas.height = h * ratio;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const r = data.x.length > 3000 ? 2.2 : data.x.length > 500 ? 3 : 4.5;
  for (const front of [false, true])
    for (let i = 0; i < data.x.length; i++) {
      if (shown(i) !== front) continue;
      const [x, y] = place(i);
      if (x < -9 || y < -9 || x > w + 9 || y > h + 9) continue;
      pen.globalAlpha = front ? 0.85 : 0.12;
      pen.fillStyle = colour(groupOf[i]);
      mark(pen, shape(groupOf[i]), x, y, i === hover ? 2 * r : r);
    }
}
let listing = 0;
function list() {
  // The same texts for whoever does not see or use the canvas.
  clearTimeout(listing);
  listing = setTimeout(() => {
    if (!data) return;
    const w = canvas.clientWidth, h = canvas.clientHeight, rows = [];
    let total = 0;
    for (let i = 0; i < data.x.length; i++) {
      const [x, y] = place(i);
      if (!shown(i) || x < 0 || y < 0 || x > w || y > h) continue;
      total++;
      if (rows.length < 50) rows.push(i);
    }
    $("in-view").textContent = `Texts in view: ${total.toLocaleString("en")}${total > rows.length ? `, the first ${rows.length}` : ""}`;
    $("view").replaceChildren(...rows.map(i => make("li", `${data.id[i]}: ${data.text[i]}`)));
  }, 120);
}
function redraw() { draw(); list(); }
function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const next = Math.min(60, Math.max(0.5, scale * factor));
  offsetX = x - (x - offsetX) * next / scale;
  offsetY = y - (y - offsetY) * next / scale;
  scale = next;
  redraw();
}
function find() {
  const words = $("find").value.trim().toLowerCase();
  found = words && data ? new Set(data.text.flatMap((text, i) => text.toLowerCase().includes(words) ? [i] : [])) : null;
  redraw();
}
function nearest(event) {
  const box = canvas.getBoundingClientRect(), mx = event.clientX - box.left, my = event.clientY - box.top;
  let best = -1, least = 144;
  for (let i = 0; data && i < data.x.length; i++) {
    const [x, y] = place(i), d = (x - mx) ** 2 + (y - my) ** 2;
    if (d < least && shown(i)) { least = d; best = i; }
  }
  return [best, mx, my];
}
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  const [, x, y] = nearest(event);
  zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, x, y);
}, { passive: false });
let held = null;
canvas.addEventListener("pointerdown", event => { held = [event.clientX, event.clientY, offsetX, offsetY]; });
window.addEventListener("pointerup", () => { if (held) list(); held = null; });
canvas.addEventListener("pointermove", event => {
  if (held) {
    offsetX = held[2] + event.clientX - held[0];
    offsetY = held[3] + event.clientY - held[1];
    draw();
    return;
  }
  const [i, x, y] = nearest(event);
  if (i !== hover) { hover = i; draw(); }
  $("tip").style.display = i < 0 ? "none" : "block";
  if (i >= 0) {
    const value = data.value[i] === null ? "" : ` (${data.value[i]})`;
    $("tip").textContent = `${data.id[i]}${value}: ${data.text[i]}`;
    $("tip").style.left = `${Math.min(x + 12, Math.max(0, canvas.clientWidth - 280))}px`;
    $("tip").style.top = `${y + 14}px`;
  }
});
canvas.addEventListener("pointerleave", () => { hover = -1; $("tip").style.display = "none"; draw(); });
canvas.addEventListener("keydown", event => {
  const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  if (moves[event.key]) { offsetX += moves[event.key][0]; offsetY += moves[event.key][1]; redraw(); }
  else if (event.key === "+" || event.key === "=") zoom(1.4);
  else if (event.key === "-") zoom(1 / 1.4);
  else return;
  event.preventDefault();
});
$("in").addEventListener("click", () => zoom(1.4));
$("out").addEventListener("click", () => zoom(1 / 1.4));
$("whole").addEventListener("click", () => { scale = 1; offsetX = offsetY = 0; redraw(); });
$("find").addEventListener("input", find);
$("map-form").addEventListener("submit", event => event.preventDefault());
$("map-index").addEventListener("change", () => { fields(); go("map", { index: $("map-index").value }); });
$("field").addEventListener("change", () => go("map", { index: $("map-index").value, field: $("field").value }));
window.addEventListener("resize", redraw);

// ---- begin ---------------------------------------------------------------------------------

async function begin() {
  [indexes, models] = (await Promise.all([ask("v1/indexes"), ask("v1/models")])).map(each => each.data);
  const names = indexes.map(each => each.id);
  options($("index"), names);
  options($("map-index"), names);
  const both = [...names, ...models.map(each => each.id).filter(each => !names.includes(each))];
  options($("left"), both, both[0]);
  options($("right"), both, both[1] || both[0]);
  $("fields").replaceChildren(...Object.keys((indexes[0] || { fields: {} }).fields).map(name => {
    const made = make("option");
    made.value = `${name} = `;
    return made;
  }));
  const dense = models.length === 1 ? "1 model" : `${models.length} models`;
  say(indexes.length ? indexes.map(each => `${each.id}: ${each.texts.toLocaleString("en")} texts`).join(" · ") : `${dense}, no index; start the server with --index FOLDER to search`);
  $("key-form").hidden = true;
  show();
}
$("key-form").addEventListener("submit", event => {
  event.preventDefault();
  key = $("key").value;
  attempt(begin);
});
window.addEventListener("hashchange", show);
attempt(begin);
