"use strict";
// The status page. State arrives whole over /events; rows are kept by key so that focus and scroll survive updates.
// Everything the daemon says is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const KIND = {
  requested: "coming", launched: "coming", starting: "coming", ready: "standby", registering: "standby",
  idle: "standby", stopped: "ending", stopping: "ending", busy: "busy", draining: "leaving", terminating: "ending",
};
let skew = 0; // server clock minus ours, ms
let state = null;
let past = null;

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

const short = (s) => span(s).replace(/ 00? (s|min)$/, "");
const seconds = (since) => (Date.now() + skew - Date.parse(since)) / 1000;
const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

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

const FEW = 8;
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
  const item = el("li"), row = el("button", "row");
  row.type = "button";
  const what = el("span", "what");
  what.append(el("b"), " ", el("span"));
  row.append(what, el("span", "age"));
  const bar = el("span", "bar");
  bar.append(el("i"));
  row.append(bar, el("span", "said"));
  row.addEventListener("click", () => openJob(job.id));
  item.append(row);
  return item;
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
  node.append(name, el("p", "facts"), el("div", "squares"), el("div"));
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
  put(facts, pool.configured
    ? `${pool.queued} waiting, ${pool.running} running · ${total} of ${pool.max} machines${states ? `: ${states}` : ""} · target ${short(pool.target_s)}`
    : `Not configured any more · ${states}`);
  rows(node.querySelector(".squares"), machines, (row) => row.id, (row) => {
    const square = el("button", "m");
    square.type = "button";
    square.addEventListener("click", () => openMachine(row.id));
    return square;
  }, (square, row) => {
    square.className = `m ${KIND[row.state] || "ending"}`;
    const words = `${row.id}: ${row.state}, ${row.where}${row.capacity_type ? `, ${row.capacity_type.replace("_", "-")}` : ""}`;
    if (square.title !== words) { square.title = words; square.setAttribute("aria-label", words); }
  });
  const reasons = pool.blocked.map((entry) => ({ key: entry.reason, text: `${plural(entry.jobs, "job gets", "jobs get")} no machine: ${entry.reason.replace(/\.$/, "")}.` }));
  if (pool.held_back) reasons.unshift({ key: "held", text: `Held back: ${pool.held_back}` });
  rows(node.lastChild, reasons, (reason) => reason.key, () => el("p", "blocked"), (p, reason) => put(p, reason.text));
}

function fillHappening(item, line) {
  const machine = line.kind === "machine";
  put(item.querySelector("time"), clock(line.at));
  put(item.querySelector("b"), machine ? "" : `${line.what} `);
  const go = item.querySelector(".go");
  put(go, line.subject);
  go.disabled = !machine && !leadsSomewhere(line);
  put(item.querySelector(".became"), machine ? ` is ${line.what}` : "");
  const because = [line.text, line.outcome && line.outcome !== "ok" ? `→ ${line.outcome}` : ""].filter(Boolean).join(" ");
  put(item.querySelector(".because"), because ? ` · ${because}` : "");
}

// Jobs ("forge:id") and machines have a page of their own; pools, offerings and listings do not.
function leadsSomewhere(line) {
  return line.subject !== "" && line.subject !== line.pool && (line.subject.includes(":") || !line.subject.includes("/"));
}

function makeHappening(line) {
  const item = el("li"), text = el("p"), go = el("button", "go");
  go.type = "button";
  go.addEventListener("click", () => line.subject.includes(":") ? openJob(line.subject) : openMachine(line.subject));
  text.append(el("b"), go, el("span", "became"), el("span", "because"));
  item.append(el("time"), text);
  return item;
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
  showTotals(next);
  showPools(next);
  rows($("waiting"), few("waiting", next.waiting), (j) => j.id, makeJobRow, (node, j) => fillJobRow(node, j, { since: j.queued_at, target: j.target_s, said: j.why }), "Nobody waits.");
  more("waiting-more", next.waiting.length, next.waiting_total);
  $("unserved-block").hidden = !next.unserved_total;
  rows($("unserved"), next.unserved, (j) => j.id, makeJobRow, (node, j) => fillJobRow(node, j, { since: j.queued_at, said: unservedWords(j), missing: true }));
  more("unserved-more", next.unserved.length, next.unserved_total);
  rows($("running"), few("running", next.running), (j) => j.id, makeJobRow, (node, j) => fillJobRow(node, j, { since: j.started_at || j.queued_at }), "Nothing runs.");
  more("running-more", next.running.length, next.running_total);
  rows($("happenings"), next.happenings, (h) => `${h.at}|${h.kind}|${h.subject}|${h.what}|${h.text}`, makeHappening, fillHappening, "Nothing yet.");
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
  put($("waiting-note"), next.waiting_total ? "furthest over its target first; the mark is the target" : "");
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
}

function tick() {
  for (const node of document.querySelectorAll("[data-since]")) age_(node);
  if (!state) return;
  const worst = state.waiting[0], note = $("s-waiting");
  const age = worst ? seconds(worst.queued_at) : 0, over = worst && age > worst.target_s;
  put(note, worst ? `${span(age)}, target ${short(worst.target_s)}` : "within every target");
  note.classList.toggle("hot", Boolean(over));
}

async function ask(path, options) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  if (answer.status === 401) { location.assign("/login"); throw new Error("signed out"); }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error || answer.statusText);
  return body;
}

async function controlPool(name, button) {
  const verb = button.dataset.verb;
  if (verb === "pause" && !confirm(`Pause pool ${name}? It launches nothing until it is resumed.`)) return;
  button.disabled = true;
  try { await ask(`/api/v1/pools/${encodeURIComponent(name)}/${verb}`, { method: "POST" }); } catch (error) { alert(error.message); } finally { button.disabled = false; }
}

function details(pairs) {
  const list = el("dl");
  for (const [word, value] of pairs) {
    if (value === "" || value === null || value === undefined) continue;
    const dd = el("dd");
    dd.append(value instanceof Node ? value : String(value));
    list.append(el("dt", "", word), dd);
  }
  return list;
}

function timelineOf(lines) {
  const list = el("ol", "timeline");
  for (const line of lines) {
    const item = el("li", line.kind);
    const time = el("time", "", clock(line.at));
    time.dateTime = line.at;
    item.append(time, el("span", "", line.text));
    list.append(item);
  }
  return list;
}

function openDialog(title, ...parts) {
  put($("detail-title"), title);
  $("detail-body").replaceChildren(...parts);
  if (!$("detail").open) $("detail").showModal();
  $("detail-title").focus();
}

const go = (text, action) => { const b = el("button", "plain", text); b.type = "button"; b.addEventListener("click", action); return b; };

async function openJob(id) {
  try {
    const job = await ask(`/api/v1/jobs/${encodeURIComponent(id)}`);
    let link = "";
    if (/^https?:\/\//.test(job.url)) { link = el("a", "", "open at the forge"); link.href = job.url; link.rel = "noreferrer noopener"; link.target = "_blank"; }
    openDialog(job.name, el("p", "verdict", job.why), details([
      ["State", job.state], ["Repository", job.repo], ["Workflow", job.workflow], ["Pool", job.pool || "none"],
      ["Labels", job.labels.join(", ")], ["Machine", job.instance ? go(job.instance, () => openMachine(job.instance)) : ""],
      ["Attempt", job.attempt > 1 ? job.attempt : ""], ["Job", job.id], ["", link],
    ]), el("h3", "", "Timeline"), timelineOf(job.timeline));
  } catch (error) { openDialog(id, el("p", "verdict", error.message)); }
}

async function openMachine(id) {
  try {
    const row = await ask(`/api/v1/instances/${encodeURIComponent(id)}`);
    const place = row.capacity_pool;
    const lines = [
      ...row.history.map((move) => ({ at: move.at, kind: "machine", text: `${move.to}: ${move.cause}` })),
      ...row.ledger.map((entry) => ({ at: entry.at, kind: "decision", text: [entry.action.replaceAll("_", " "), entry.reason, entry.outcome].filter(Boolean).join(": ") })),
    ].sort((a, b) => a.at < b.at ? -1 : a.at > b.at ? 1 : 0);
    openDialog(row.id, el("p", "verdict", `It has been ${row.state} for ${short(seconds(row.since))}${row.ending ? ` (${row.ending.replaceAll("_", " ")})` : ""}.`), details([
      ["Pool", row.pool], ["Machine", place ? `${place.machine_type} in ${place.zone}, ${place.capacity_type.replace("_", "-")}` : row.provider],
      ["Price", row.price_usd_hour ? `$${row.price_usd_hour.toFixed(4)} an hour` : ""], ["Cloud id", row.provider_id], ["Runner", row.runner_name],
      ["Job", row.job ? go(row.job, () => openJob(row.job)) : ""], ["Detail", row.detail],
    ]), el("h3", "", "History"), timelineOf(lines));
  } catch (error) { openDialog(id, el("p", "verdict", error.message)); }
}

function drawHistory() {
  if (!past) return;
  const chosen = $("plot-pool").value;
  const pools = past.pools.filter((pool) => !chosen || pool.name === chosen);
  if (!pools.length) return;
  const count = pools[0].points.length;
  const over = (pick, join) => Array.from({ length: count }, (_, i) => {
    const points = pools.map((pool) => [pool.points[i], pool]).filter(([point]) => point);
    return points.length ? points.map(([point, pool]) => pick(point, pool)).reduce(join) : null;
  });
  const sum = (a, b) => a + b, larger = (a, b) => Math.max(a, b);
  const single = pools.length === 1 ? pools[0] : null;
  const wait = single ? over((p) => p.wait_s, larger) : over((p, pool) => p.wait_s / Math.max(pool.target_s, 1), larger);
  const target = single ? single.target_s : 1;
  const top = Math.max(target * 1.5, ...wait.map((v) => v || 0)) * 1.05;
  const label = single ? short : (v) => v === 0 ? "0" : `${v.toFixed(1)}×`;
  put($("plot-wait-note"), single ? "" : "in targets, the worst pool at each time");
  const base = { since: Date.parse(past.since), stepMs: past.step_s * 1000 };
  const at = (i) => clock(base.since + (i + 0.5) * base.stepMs).slice(0, 5);
  Plot.draw($("plot-wait"), [{ name: "wait", values: wait, area: true }], {
    ...base, top, target, targetWord: "target", label, title: "Oldest wait over the last hour, against the target",
    say: (i) => wait[i] === null ? `${at(i)} no sample` : `${at(i)} ${single ? span(wait[i]) : `${wait[i].toFixed(2)} targets`}`,
  });
  const machines = over((p) => p.instances, sum), running = over((p) => p.running, sum), queued = over((p) => p.queued, sum);
  const highest = Plot.niceTop(Math.max(4, ...machines.map((v) => v || 0), ...running.map((v) => v || 0), ...queued.map((v) => v || 0)));
  Plot.draw($("plot-fleet"), [
    { name: "running", values: running, area: true }, { name: "machines", values: machines }, { name: "queued", values: queued },
  ], {
    ...base, top: highest, label: (v) => Number.isInteger(v) ? v.toLocaleString("en") : "", title: "Machines, running and waiting jobs over the last hour",
    say: (i) => machines[i] === null ? `${at(i)} no sample` : `${at(i)} ${machines[i]} machines, ${running[i]} running, ${queued[i]} waiting`,
  });
}

async function readHistory() {
  try { past = await ask("/api/v1/history?minutes=60"); drawHistory(); } catch { /* the next round tries again */ }
}

function listen() {
  const link = $("link"), stream = new EventSource("/events");
  stream.addEventListener("state", (event) => { put(link, "Live"); link.classList.remove("broken"); const next = JSON.parse(event.data); skew = Date.parse(next.now) - Date.now(); show(next); });
  stream.addEventListener("error", () => {
    put(link, state ? `Connection lost, as of ${clock(state.now)}` : "No connection");
    link.classList.add("broken");
    if (stream.readyState === EventSource.CLOSED) setTimeout(async () => {
      try { await ask("/api/v1/pools"); } catch { /* signed out: ask went to the login; else try again */ }
      listen();
    }, 2000);
  });
}

$("detail-close").addEventListener("click", () => $("detail").close());
$("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
for (const name of ["waiting", "running"]) $(`${name}-all`).addEventListener("click", () => {
  if (!opened.delete(name)) opened.add(name);
  show(state);
});
$("plot-pool").addEventListener("change", drawHistory);
let resizing = 0;
addEventListener("resize", () => { cancelAnimationFrame(resizing); resizing = requestAnimationFrame(drawHistory); });
setInterval(tick, 1000);
setInterval(readHistory, 15000);
listen();
readHistory();
ask("/api/v1/status").then((status) => { $("logout").hidden = status.access !== "token"; }, () => {});
