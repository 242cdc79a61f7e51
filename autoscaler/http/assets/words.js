"use strict";
// What all parts of the page share: elements, words for times and states, and lists that keep their rows.

const $ = (id) => document.getElementById(id);
let skew = 0; // server clock minus ours, ms

function el(tag, cls, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  return node;
}

function put(node, text) { if (node.textContent !== text) node.textContent = text; }

function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor(s % 3600 / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

const now = () => Date.now() + skew;
const short = (s) => span(s).replace(/ 00? (s|min)$/, "");
const seconds = (since) => (now() - Date.parse(since)) / 1000;
const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const spaced = (word) => word.replaceAll("_", " ");
const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);

// "Starts in about 40 s", as of now; an estimate that has passed is no news.
function startWords(job) {
  const left = (Date.parse(job.estimated_start) - now()) / 1000;
  return left > 1 ? `Starts in about ${short(left)}.` : "Starts any moment.";
}

function usd(amount) {
  if (!amount) return "";
  return amount >= 0.1 ? `$${amount.toFixed(2)}` : `$${amount.toPrecision(2).replace(/e-.*/, "")}`;
}

// Keep one child of `holder` per item: `make(item)` builds it, `fill(node, item)` brings it up to date.
function rows(holder, items, key, make, fill, nothing) {
  const old = new Map([...holder.children].filter((c) => c.dataset.key !== undefined).map((c) => [c.dataset.key, c]));
  const want = items.map((item) => {
    const name = key(item);
    let node = old.get(name);
    if (!node) { node = make(item); node.dataset.key = name; }
    old.delete(name);
    fill(node, item);
    return node;
  });
  for (const node of old.values()) node.remove();
  holder.querySelector(":scope > .empty")?.remove();
  want.forEach((node, index) => { if (holder.children[index] !== node) holder.insertBefore(node, holder.children[index] || null); });
  if (!want.length && nothing) holder.append(el(holder.tagName === "DIV" ? "p" : "li", "empty", nothing));
}

const jobLink = (id) => `#job=${encodeURIComponent(id)}`;
const machineLink = (id) => `#machine=${encodeURIComponent(id)}`;

function linkTo(href, text, cls) {
  const node = el("a", cls || "go", text);
  node.href = href;
  return node;
}

async function ask(path, options) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  if (answer.status === 401) { location.assign(`/login${location.hash}`); throw new Error("signed out"); }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error || answer.statusText);
  return body;
}
