"use strict";
// The page of one job or one machine, in a dialog. Its address (#job=... or #machine=...) can be kept, sent and reloaded.

const Detail = (() => {
  const REFRESH_MS = 2000;
  const MOVES = {
    requested: "Asked for", launched: "Launched", ready: "Ready", registering: "Gets a runner's registration", idle: "Its runner is online",
    busy: "Took its job", draining: "Being reclaimed", stopping: "Being stopped", stopped: "Stopped", starting: "Being started", terminating: "Being ended", terminated: "Ended",
  };
  let shown = "";
  let opener = "";
  let readAt = 0;
  let later = 0;

  function wanted() {
    const found = /^#(job|machine)=(.+)$/.exec(location.hash);
    if (!found) return null;
    try { return { kind: found[1], id: decodeURIComponent(found[2]) }; } catch { return null; }
  }

  function details(pairs) {
    const list = el("dl");
    for (const [word, value] of pairs) {
      if (value === "" || value === null || value === undefined) continue;
      const dd = el("dd");
      dd.append(...[value].flat());
      list.append(el("dt", "", word), dd);
    }
    return list;
  }

  function fillLine(item, line, before) {
    const [time, text, took] = item.children;
    item.className = line.kind;
    time.dateTime = line.at;
    put(time, clock(line.at));
    put(text, line.text);
    const step = before ? (Date.parse(line.at) - Date.parse(before.at)) / 1000 : 0;
    put(took, step >= 1 ? `+${short(step)}` : "");
  }

  function timeline(lines) {
    const keyed = lines.map((line, index) => ({ ...line, before: lines[index - 1], key: `${line.at}|${line.kind}|${line.text}|${index}` }));
    rows($("detail-timeline"), keyed, (line) => line.key, () => {
      const item = el("li");
      item.append(el("time"), el("span"), el("span", "took"));
      return item;
    }, (item, line) => fillLine(item, line, line.before), "Nothing is known of it.");
  }

  function fill({ title, verdict, facts, heading, lines }) {
    put($("detail-title"), title);
    put($("detail-verdict"), verdict);
    const list = details(facts), old = $("detail-facts").firstChild;
    if (!old || old.innerHTML !== list.innerHTML) $("detail-facts").replaceChildren(list);
    $("detail-heading").hidden = !lines;
    put($("detail-heading"), heading || "");
    timeline(lines || []);
    $("detail-timeline").hidden = !lines;
  }

  function forgeLink(job) {
    if (!/^https?:\/\//.test(job.url)) return "";
    const link = linkTo(job.url, `open at ${job.forge}`);
    link.rel = "noreferrer noopener";
    link.target = "_blank";
    return link;
  }

  const took = (from, to) => from && to ? span((Date.parse(to) - Date.parse(from)) / 1000) : "";

  async function job(id) {
    const row = await ask(`/api/v1/jobs/${encodeURIComponent(id)}`);
    return {
      title: row.name, verdict: row.why, heading: "Timeline", lines: row.timeline,
      facts: [
        ["State", row.conclusion ? `${row.state}: ${row.conclusion}` : row.state], ["Repository", row.repo], ["Workflow", row.workflow], ["Pool", row.pool || "none"],
        ["Labels", row.labels.join(", ")], ["Machine", row.instance ? linkTo(machineLink(row.instance), row.instance) : ""],
        ["Waited", took(row.queued_at, row.started_at)], ["Ran", took(row.started_at, row.finished_at)],
        ["Attempt", row.attempt > 1 ? row.attempt : ""], ["Queued again as", row.successor ? linkTo(jobLink(row.successor), row.successor) : ""],
        ["Job", row.id], ["", forgeLink(row)],
      ],
    };
  }

  async function machine(id) {
    const row = await ask(`/api/v1/instances/${encodeURIComponent(id)}`), place = row.capacity_pool;
    const moved = new Set(row.history.map((move) => move.to));
    const lines = [
      ...row.history.map((move) => ({ at: move.at, kind: "machine", text: `${MOVES[move.to] || capital(move.to)}: ${move.cause}` })),
      ...row.ledger.filter((entry) => entry.action !== "terminate" || !moved.has("terminating"))
        .map((entry) => ({ at: entry.at, kind: "decision", text: [capital(spaced(entry.action)), entry.reason, entry.outcome].filter(Boolean).join(": ") })),
    ];
    const served = row.served;
    if (served && served.finished_at) lines.push({ at: served.finished_at, kind: "job", text: `${served.name} ended: ${served.conclusion || served.state}` });
    lines.sort((a, b) => Date.parse(a.at) - Date.parse(b.at));
    const ended = row.state === "terminated";
    const why = row.ending ? ` (${spaced(row.ending)})` : "";
    return {
      title: row.id, heading: "History", lines,
      verdict: ended ? `It ended ${short(seconds(row.since))} ago${why}, after ${took(row.created_at, row.since)}.` : `It has been ${row.state} for ${short(seconds(row.since))}${why}.`,
      facts: [
        ["Pool", row.pool], ["Machine", place ? `${place.machine_type} in ${place.zone}, ${place.capacity_type.replace("_", "-")}` : row.provider],
        ["Job", row.job ? [linkTo(jobLink(row.job), served ? served.name : row.job), served ? ` of ${served.repo}${served.conclusion ? `: ${served.conclusion}` : ""}` : ""] : ""],
        ["Cost so far", row.price_usd_hour ? `${usd(row.cost_usd) || "$0"}, at ${usd(row.price_usd_hour)} an hour` : ""],
        ["Taken back", row.interruption ? `by ${row.interruption.provider} ${row.interruption.announced ? "with a notice" : "without a notice"}, told by ${row.interruption.sources.join(", ")}` : ""],
        ["Cloud id", row.provider_id], ["Runner", row.runner_name], ["Detail", row.detail],
      ],
    };
  }

  async function read({ kind, id }) {
    readAt = Date.now();
    let page;
    try { page = await (kind === "job" ? job(id) : machine(id)); } catch (error) {
      if (shown === location.hash) return; // it is on the screen: the next round tries again
      page = { title: id, verdict: error.message === "Failed to fetch" ? "The daemon does not answer now." : `${capital(error.message)}: it may be older than what is kept.`, facts: [] };
    }
    const current = wanted();
    if (!current || current.kind !== kind || current.id !== id) return; // somebody went on meanwhile
    fill(page);
    if (shown === location.hash) return;
    shown = location.hash;
    if (!$("detail").open) $("detail").showModal();
    $("detail").scrollTop = 0;
    $("detail-title").focus();
  }

  function follow() {
    const want = wanted();
    if (!want) { shown = ""; if ($("detail").open) $("detail").close(); return; }
    if (!$("detail").open) opener = document.activeElement?.getAttribute("href") || "";
    read(want);
  }

  // The dialog is gone: so is its address, and the focus is back on what opened it, wherever that is by now.
  function closed() {
    shown = "";
    if (wanted()) history.replaceState(null, "", location.pathname + location.search);
    if (document.activeElement?.getAttribute("href") === opener && opener) return;
    const back = opener && [...document.querySelectorAll("main a")].find((link) => link.getAttribute("href") === opener);
    (back || $("waiting-title")).focus();
  }

  // A new state came: what is open is read again, at most every two seconds.
  function refresh() {
    const want = wanted();
    if (!want || !$("detail").open) return;
    clearTimeout(later);
    const early = readAt + REFRESH_MS - Date.now();
    if (early > 0) later = setTimeout(refresh, early); else read(want);
  }

  function start() {
    $("detail-close").addEventListener("click", () => $("detail").close());
    $("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
    $("detail").addEventListener("close", closed);
    addEventListener("hashchange", follow);
    follow();
  }

  return { start, refresh };
})();
