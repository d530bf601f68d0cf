"use strict";
// Colours of Okabe and Ito, told apart by the colour-blind; shapes tell equal colours apart.
const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#777777"];
const SHAPES = 4;
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("canvas"), tip = document.getElementById("tip");
const context = canvas.getContext("2d");
let scale = 1, offsetX = 0, offsetY = 0, chosen = null, found = null, hover = -1;

const place = i => {
  const w = canvas.clientWidth, h = canvas.clientHeight, pad = 18;
  return [
    (pad + data.x[i] * (w - 2 * pad)) * scale + offsetX,
    (pad + (1 - data.y[i]) * (h - 2 * pad)) * scale + offsetY,
  ];
};
function mark(pen, shape, x, y, r) {
  pen.beginPath();
  if (shape === 0) pen.arc(x, y, r, 0, 7);
  else if (shape === 1) pen.rect(x - r, y - r, 2 * r, 2 * r);
  else if (shape === 2) { pen.moveTo(x, y - 1.3 * r); pen.lineTo(x + 1.2 * r, y + r); pen.lineTo(x - 1.2 * r, y + r); pen.closePath(); }
  else { pen.moveTo(x, y - 1.4 * r); pen.lineTo(x + 1.4 * r, y); pen.lineTo(x, y + 1.4 * r); pen.lineTo(x - 1.4 * r, y); pen.closePath(); }
  pen.fill();
}
const colour = g => g < 0 ? "#9996" : COLOURS[g % COLOURS.length];
const shape = g => g < 0 ? 0 : Math.floor(g / COLOURS.length) % SHAPES;
const shown = i => (chosen === null || data.group[i] === chosen) && (found === null || found.has(i));
function draw() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio; canvas.height = canvas.clientHeight * ratio;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  const r = data.x.length > 3000 ? 2.2 : data.x.length > 500 ? 3 : 4.5;
  for (const front of [false, true])
    for (let i = 0; i < data.x.length; i++) {
      if (shown(i) !== front) continue;
      const [x, y] = place(i);
      context.globalAlpha = front ? 0.85 : 0.12;
      context.fillStyle = colour(data.group[i]);
      mark(context, shape(data.group[i]), x, y, i === hover ? 2 * r : r);
    }
  context.globalAlpha = 1;
}
function nearest(event) {
  const box = canvas.getBoundingClientRect();
  const mx = event.clientX - box.left, my = event.clientY - box.top;
  let best = -1, least = 144;
  for (let i = 0; i < data.x.length; i++) {
    const [x, y] = place(i), d = (x - mx) ** 2 + (y - my) ** 2;
    if (d < least && shown(i)) { least = d; best = i; }
  }
  return [best, mx, my];
}
function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const next = Math.min(60, Math.max(0.5, scale * factor));
  offsetX = x - (x - offsetX) * next / scale;
  offsetY = y - (y - offsetY) * next / scale;
  scale = next;
  draw();
}
function name(g) { return g < 0 ? "in no group" : data.groups[g].name; }
function list() {
  const place = document.getElementById("texts");
  place.replaceChildren();
  if (chosen === null && found === null) return;
  const rows = [];
  for (let i = 0; i < data.text.length && rows.length < data.most; i++) if (shown(i)) rows.push(i);
  let total = 0;
  for (let i = 0; i < data.text.length; i++) total += shown(i);
  const head = document.createElement("h2");
  head.style.fontSize = "1rem";
  head.textContent = (chosen === null ? "Texts found" : name(chosen)) + `: ${total.toLocaleString("en")}` +
    (total > rows.length ? `, the first ${rows.length}` : "");
  const items = document.createElement("ol");
  for (const i of rows) {
    const item = document.createElement("li");
    item.textContent = data.text[i];
    items.append(item);
  }
  place.append(head, items);
}
function choose(g) {
  chosen = chosen === g ? null : g;
  for (const each of document.querySelectorAll(".group")) {
    const own = Number(each.dataset.group) === chosen;
    each.setAttribute("aria-pressed", String(own));
    if (own) each.scrollIntoView({ block: "nearest" });
  }
  draw(); list();
}
function search(words) {
  const wanted = words.trim().toLowerCase();
  found = wanted ? new Set(data.text.flatMap((t, i) => t.toLowerCase().includes(wanted) ? [i] : [])) : null;
  document.getElementById("count").textContent = found === null ? "" : `${found.size.toLocaleString("en")} found`;
  draw(); list();
}
for (const each of document.querySelectorAll(".group")) {
  const g = Number(each.dataset.group), icon = each.querySelector("canvas");
  icon.width = icon.height = 28;
  const pen = icon.getContext("2d");
  pen.scale(2, 2); pen.fillStyle = colour(g);
  mark(pen, shape(g), 7, 7, 4.5);
  each.addEventListener("click", () => choose(g));
}
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  const [, x, y] = nearest(event);
  zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, x, y);
}, { passive: false });
let held = null;
canvas.addEventListener("pointerdown", event => { held = [event.clientX, event.clientY, offsetX, offsetY, false]; });
window.addEventListener("pointerup", event => {
  if (held && !held[4] && event.target === canvas) {
    const [i] = nearest(event);
    if (i >= 0) choose(data.group[i]);
  }
  held = null;
});
canvas.addEventListener("pointermove", event => {
  if (held) {
    const dx = event.clientX - held[0], dy = event.clientY - held[1];
    held[4] = held[4] || Math.abs(dx) + Math.abs(dy) > 4;
    offsetX = held[2] + dx; offsetY = held[3] + dy;
    draw();
    return;
  }
  const [i, x, y] = nearest(event);
  if (i !== hover) { hover = i; draw(); }
  tip.style.display = i < 0 ? "none" : "block";
  if (i >= 0) {
    tip.textContent = `${name(data.group[i])}: ${data.text[i]}`;
    tip.style.left = Math.min(x + 12, Math.max(0, canvas.clientWidth - 260)) + "px";
    tip.style.top = y + 14 + "px";
  }
});
canvas.addEventListener("pointerleave", () => { hover = -1; tip.style.display = "none"; draw(); });
document.getElementById("in").addEventListener("click", () => zoom(1.4));
document.getElementById("out").addEventListener("click", () => zoom(1 / 1.4));
document.getElementById("reset").addEventListener("click", () => { scale = 1; offsetX = offsetY = 0; draw(); });
document.getElementById("search").addEventListener("input", event => search(event.target.value));
window.addEventListener("resize", draw);
draw();
// A link to the page may name a group or words: page.html#group=3, page.html#search=card
const [key, value] = decodeURIComponent(location.hash.slice(1)).split("=");
if (key === "group") choose(Number(value));
if (key === "search") { document.getElementById("search").value = value; search(value); }
document.body.dataset.ready = "yes";
