"use strict";
// The status page. State arrives whole over /events; rows are kept by key so that focus and scroll survive updates.
// Everything the daemon says is set as text, never as markup.

const KIND = {
  requested: "coming", launched: "coming", starting: "coming", ready: "standby", registering: "standby",
  idle: "standby", stopped: "ending", stopping: "ending", busy: "busy", draining: "leaving", terminating: "ending",
};
let state = null;
const FEW = 3;
const AGAIN_MS = 1000;
const SILENT_MS = 20000;
const LONG_MS = 300000;
const opened = new Set();

// The first few of a long list, or all of it once somebody asked for it.
function few(name, items) {
  const button = $(`${name}-all`);
  button.hidden = items.length <= FEW;
  put(button, opened.has(name) ? "Show fewer" : `Show ${items.length - FEW} more`);
  button.setAttribute("aria-expanded", String(opened.has(name)));
  return opened.has(name) ? items : items.slice(0, FEW);
}

function more(id, shown, total) { put($(id), total > shown ? `and ${(total - shown).toLocaleString("en")} more that are not listed here` : ""); }

function makeJobRow(job) {
  const item = el("li"), row = linkTo(jobLink(job.id), undefined, "row");
  const what = el("span", "what");
  what.append(el("b"), " ", el("span"));
  row.append(what, el("span", "age"));
  const bar = el("span", "bar");
  bar.append(el("i"));
  row.append(bar, el("span", "said"));
  item.append(row);
  return item;
}

function makeEndedRow(job) {
  const item = el("li"), row = linkTo(jobLink(job.id), undefined, "row");
  const what = el("span", "what");
  what.append(el("b"), " ", el("span"));
  row.append(what, el("span", "outcome"), el("span", "said"));
  item.append(row);
  return item;
}

function fillEndedRow(item, job) {
  const [what, outcome, said] = item.firstChild.children;
  const word = job.conclusion || job.state;
  put(what.firstChild, job.name);
  put(what.lastChild, [job.repo, job.pool].filter(Boolean).join(" · "));
  put(outcome, spaced(word));
  outcome.className = `outcome ${word}`;
  const wait = job.wait_s === null ? "never ran" : `waited ${span(job.wait_s)}`;
  put(said, [job.ended_at ? clock(job.ended_at) : "", wait, job.took_s === null ? "" : `ran ${span(job.took_s)}`].filter(Boolean).join(" · "));
}

function fillJobRow(item, job, { since, target, said, missing }) {
  const row = item.firstChild;
  put(row.querySelector("b"), job.name);
  put(row.querySelector(".what > span"), [job.repo, job.pool, job.attempt > 1 ? `attempt ${job.attempt}` : ""].filter(Boolean).join(" · "));
  const age = row.querySelector(".age"), bar = row.querySelector(".bar"), why = row.querySelector(".said");
  age.dataset.since = since;
  if (target) age.dataset.target = target; else delete age.dataset.target;
  bar.hidden = !target;
  put(why, said || "");
  why.hidden = !said;
  why.classList.toggle("missing", Boolean(missing));
  age_(age);
}

function age_(node) {
  const age = seconds(node.dataset.since);
  put(node, span(age));
  const target = Number(node.dataset.target);
  if (!target) return;
  const share = age / target, bar = node.parentNode.querySelector(".bar i");
  node.classList.toggle("over", share >= 1);
  bar.className = share >= 1 ? "over" : share >= 0.75 ? "near" : "";
  bar.style.setProperty("--share", `${Math.min(100, share * 50).toFixed(1)}%`);
  bar.parentNode.title = `${span(age)} of a target of ${short(target)} (the mark)`;
}

// Why it waits and about when it starts.
function waitingWords(job) {
  if (!job.estimated_start) return job.why;
  return `${job.why} ${startWords(job)}`;
}

function unservedWords(job) {
  if (!job.nearest) return `No pool serves ${job.repo}.`;
  const lacks = job.missing.length ? `lacks ${job.missing.join(", ")}` : "";
  const repo = job.repo_served ? "" : `does not serve ${job.repo}`;
  return `The nearest pool, ${job.nearest}, ${[lacks, repo].filter(Boolean).join(" and ")}. It asks for: ${job.labels.join(", ") || "no label"}.`;
}

function makePool(pool) {
  const node = el("div", "pool");
  const name = el("div", "pool-name");
  const control = el("button", "plain pool-do", "Pause");
  control.type = "button";
  control.addEventListener("click", () => controlPool(pool.name, control));
  name.append(el("b", "", pool.name), el("span", "tag"), el("span", "tag hand"), control);
  const facts = el("p", "facts"), below = el("div", "now");
  facts.append(el("span"), el("span", "states"), el("span"));
  below.append(el("div", "squares"), el("div", "reasons"));
  node.append(name, facts, below);
  return node;
}

function fillPool(node, pool, machines) {
  const [labels, hand] = node.querySelectorAll(".tag");
  put(labels, pool.labels.join(" ") || "no labels");
  put(hand, pool.control);
  hand.hidden = pool.control === "active";
  const control = node.querySelector(".pool-do");
  control.hidden = !pool.configured;
  put(control, pool.control === "active" ? "Pause" : "Resume");
  control.dataset.verb = pool.control === "active" ? "pause" : "resume";
  control.setAttribute("aria-label", `${control.textContent} pool ${pool.name}`);
  const facts = node.querySelector(".facts");
  const states = Object.entries(pool.instances).map(([name, count]) => `${count} ${name}`).join(", ");
  const total = Object.values(pool.instances).reduce((a, b) => a + b, 0);
  put(facts.children[0], pool.configured ? `${pool.queued} waiting, ${pool.running} running · ${total} of ${pool.max} machines` : `Not configured any more · ${plural(total, "machine", "machines")}`);
  put(facts.children[1], states ? `: ${states}` : "");
  put(facts.children[2], pool.configured ? ` · target ${short(pool.target_s)}` : "");
  if (facts.title !== facts.textContent) facts.title = facts.textContent;
  rows(node.querySelector(".squares"), machines, (row) => row.id, (row) => {
    return linkTo(machineLink(row.id), undefined, "m");
  }, (square, row) => {
    square.className = `m ${KIND[row.state] || "ending"}`;
    const words = `${row.id}: ${row.state}, ${row.where}${row.capacity_type ? `, ${row.capacity_type.replace("_", "-")}` : ""}`;
    if (square.title !== words) { square.title = words; square.setAttribute("aria-label", words); }
  });
  const reasons = pool.blocked.map((entry) => ({ key: entry.reason, text: `${entry.jobs ? `${plural(entry.jobs, "job gets", "jobs get")} no machine` : "Machines are missing"}: ${entry.reason.replace(/\.$/, "")}.` }));
  if (pool.held_back) reasons.unshift({ key: "held", text: `Held back: ${pool.held_back}` });
  rows(node.querySelector(".reasons"), reasons, (reason) => reason.key, () => el("p", "blocked"), (p, reason) => put(p, reason.text));
}

function makeHappening() {
  const item = el("li"), text = el("p");
  text.append(el("span"), el("span", "because"));
  item.append(el("time"), text);
  return item;
}

function fillHappening(item, line) {
  item.className = line.kind;
  put(item.firstChild, clock(line.at));
  const [told, because] = item.lastChild.children;
  if (told.textContent !== line.parts.map((part) => part.text).join("")) {
    told.replaceChildren(...line.parts.map((part) => part.job ? linkTo(jobLink(part.job), part.text) : part.machine ? linkTo(machineLink(part.machine), part.text) : part.text));
  }
  put(because, line.why ? ` · ${line.why}` : "");
}

function show(next) {
  state = next;
  put($("deployment"), next.deployment);
  document.title = `${next.waiting_total ? `(${next.waiting_total}) ` : ""}${next.deployment} · autoscaler`;
  document.querySelector(".mark").className = `mark ${next.ready ? "well" : "unwell"}`;
  put($("readiness"), next.ready ? "all well" : "not all well");
  $("readiness").classList.toggle("hot", !next.ready);
  rows($("health"), next.conditions, (c) => c.name, () => {
    const card = el("div", "unwell-card");
    card.append(el("b"), el("span"), el("span", "remedy"));
    return card;
  }, (card, c) => {
    put(card.children[0], c.name);
    put(card.children[1], ` is not well since ${clock(c.since)}: ${c.detail}`);
    put(card.children[2], c.remedy);
  });
  rows($("troubles"), next.troubles, (t) => `${t.target}|${t.text}`, () => {
    const card = el("div", "trouble-card");
    card.append(el("b"), el("span"));
    return card;
  }, (card, t) => {
    put(card.children[0], t.target);
    put(card.children[1], ` ${t.text}`);
  });
  showTotals(next);
  showPools(next);
  rows($("waiting"), next.waiting, (j) => j.id, makeJobRow, (node, j) => fillJobRow(node, j, { since: j.queued_at, target: j.target_s, said: waitingWords(j) }), "Nobody waits.");
  more("waiting-more", next.waiting.length, next.waiting_total);
  $("unserved-block").hidden = !next.unserved_total;
  rows($("unserved"), few("unserved", next.unserved), (j) => j.id, makeJobRow, (node, j) => fillJobRow(node, j, { since: j.queued_at, said: unservedWords(j), missing: true }));
  more("unserved-more", next.unserved.length, next.unserved_total);
  rows($("running"), next.running, (j) => j.id, makeJobRow, (node, j) => fillJobRow(node, j, { since: j.started_at || j.queued_at }), "Nothing runs.");
  more("running-more", next.running.length, next.running_total);
  rows($("ended"), next.ended, (j) => j.id, makeEndedRow, fillEndedRow, "No job ended yet.");
  rows($("happenings"), next.happenings, (h) => h.key, makeHappening, fillHappening, "Nothing yet.");
}

function showTotals(next) {
  put($("n-waiting"), next.waiting_total.toLocaleString("en"));
  put($("n-running"), next.running_total.toLocaleString("en"));
  put($("n-machines"), next.machines_total.toLocaleString("en"));
  put($("n-unserved"), next.unserved_total.toLocaleString("en"));
  $("n-unserved").parentNode.classList.toggle("alert", next.unserved_total > 0);
  const lost = next.pools.reduce((sum, pool) => sum + pool.lost, 0);
  put($("s-running"), lost ? `${lost} interrupted, to be requeued` : "");
  const tally = {};
  for (const pool of next.pools) for (const [name, n] of Object.entries(pool.instances)) tally[KIND[name] || "ending"] = (tally[KIND[name] || "ending"] || 0) + n;
  const words = { coming: "coming", standby: "ready", busy: "busy", leaving: "being reclaimed", ending: "ending" };
  put($("s-machines"), Object.keys(words).filter((k) => tally[k]).map((k) => `${tally[k]} ${words[k]}`).join(", "));
  put($("s-unserved"), next.unserved_total ? "no pool has their labels or repository" : "every job has a pool");
  put($("waiting-note"), next.waiting_total ? "furthest over target first" : "");
  tick();
}

function showPools(next) {
  const byPool = new Map(next.pools.map((pool) => [pool.name, []]));
  for (const row of next.machines) { if (!byPool.has(row.pool)) byPool.set(row.pool, []); byPool.get(row.pool).push(row); }
  const known = new Map(next.pools.map((pool) => [pool.name, { ...pool, configured: true }]));
  for (const [name, machines] of byPool) if (!known.has(name)) {
    const instances = {};
    for (const row of machines) instances[row.state] = (instances[row.state] || 0) + 1;
    known.set(name, { name, configured: false, labels: [], control: "active", instances, blocked: [], held_back: "" });
  }
  rows($("pools"), [...known.values()], (p) => p.name, makePool, (node, p) => fillPool(node, p, byPool.get(p.name) || []), "No pool is configured.");
  more("machines-more", next.machines.length, next.machines_total);
  const pick = $("plot-pool"), names = next.pools.map((p) => p.name);
  if ([...pick.options].slice(1).map((o) => o.value).join("\n") !== names.join("\n")) {
    const chosen = pick.value;
    pick.replaceChildren(new Option("all", ""), ...names.map((n) => new Option(n, n)));
    pick.value = names.includes(chosen) ? chosen : "";
  }
  Offerings.showPicks();
}

function tick() {
  for (const node of document.querySelectorAll("[data-since]")) age_(node);
  if (!state) return;
  const worst = state.waiting[0], note = $("s-waiting");
  const age = worst ? seconds(worst.queued_at) : 0, over = worst && age > worst.target_s;
  put(note, worst ? `${span(age)}, target ${short(worst.target_s)}` : "within every target");
  note.classList.toggle("hot", Boolean(over));
}

async function controlPool(name, button) {
  const verb = button.dataset.verb;
  if (verb === "pause" && !confirm(`Pause pool ${name}? It launches nothing until it is resumed.`)) return;
  button.disabled = true;
  try { await ask(`/api/v1/pools/${encodeURIComponent(name)}/${verb}`, { method: "POST" }); } catch (error) { alert(error.message); } finally { button.disabled = false; }
}

function live(next) {
  skew = Date.parse(next.now) - Date.now();
  const starts = next.tick_at === null && state !== null; // a daemon that came back knows nothing before its first tick
  link(!starts, "the daemon starts");
  if (starts) return;
  Plot.remember(next);
  show(next);
  Detail.refresh();
}

function link(well, words) {
  put($("link"), well ? "Live" : state ? `Reconnecting, as of ${clock(state.now)}` : "Reconnecting");
  $("link").classList.toggle("broken", !well);
  $("link").title = well ? "" : words;
}

// One stream at a time. It says something every few seconds: a silent one is dead, whatever the browser thinks of it.
function listen() {
  const stream = new EventSource("/events");
  const opened = Date.now();
  let heard = opened;
  const again = () => {
    clearInterval(watch);
    stream.close();
    if (heard - opened > LONG_MS) { listen(); return; } // the daemon ends old streams: one more try before a word is said
    link(false, "the daemon does not answer; this page goes on by itself once it does");
    setTimeout(async () => {
      try { await ask("/api/v1/ledger?limit=1", { signal: AbortSignal.timeout(5000) }); } catch { /* signed out: ask went to the login; else try again */ }
      listen();
    }, AGAIN_MS);
  };
  const watch = setInterval(() => { if (Date.now() - heard > SILENT_MS) again(); }, 1000);
  stream.addEventListener("state", (event) => { heard = Date.now(); live(JSON.parse(event.data)); });
  stream.addEventListener("still", () => { heard = Date.now(); });
  stream.addEventListener("error", again);
}

$("unserved-all").addEventListener("click", () => {
  if (!opened.delete("unserved")) opened.add("unserved");
  show(state);
});
$("plot-pool").addEventListener("change", Plot.show);
let resizing = 0;
addEventListener("resize", () => { cancelAnimationFrame(resizing); resizing = requestAnimationFrame(Plot.show); });
setInterval(() => { tick(); Plot.show(); }, 1000);
setInterval(Plot.read, 10000);
listen();
Plot.read();
Detail.start();
Costs.start();
Offerings.start();
Waits.start();
ask("/api/v1/status").then((status) => { $("logout").hidden = status.access !== "token"; }, () => {});
