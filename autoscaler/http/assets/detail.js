"use strict";
// The page of one job or one machine, in a dialog. Its address (#job=... or #machine=...) can be kept, sent and reloaded.

const Detail = (() => {
  const REFRESH_MS = 2000;
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
    put(text, line.tag ? `${line.tag} · ${line.text}` : line.text);
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

  function line(id, text) {
    put($(id), text || "");
    $(id).hidden = !text;
  }

  // Links to the other attempts at the same work.
  function chain(attempts) {
    rows($("detail-chain"), attempts, (one) => one.id, () => {
      const item = el("li");
      item.append(el("span"));
      return item;
    }, (item, one) => {
      const words = `Attempt ${one.attempt}: ${one.state === "requeued" ? "lost, queued again" : one.conclusion || one.state}`;
      if (item.textContent !== words) item.replaceChildren(one.here ? el("b", "", words) : linkTo(jobLink(one.id), words));
    });
    $("detail-chain").hidden = !attempts.length;
  }

  function evidence(found) {
    rows($("detail-evidence"), found, (one) => `${one.at}|${one.source}|${one.text}`, (one) => {
      const item = el("li");
      item.append(el("time", "", clock(one.at)), el("b", "", one.source), el("span", "", one.text));
      return item;
    }, () => {});
    $("detail-evidence").hidden = $("detail-evidence-heading").hidden = !found.length;
  }

  function fill({ title, verdict, facts, heading, lines, starts, advice, attempts, proof }) {
    put($("detail-title"), title);
    put($("detail-verdict"), verdict);
    line("detail-starts", starts);
    line("detail-advice", advice);
    chain(attempts || []);
    evidence(proof || []);
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

  // When a waiting job starts and how sure that is, or why nobody knows.
  function starts(row) {
    const note = row.estimated_start_note;
    if (!row.estimated_start) return note ? `When it starts is not known: ${note}.` : "";
    const late = row.estimated_start_p95 ? `; 95 of 100 start by ${clock(row.estimated_start_p95)}` : "";
    return `${startWords(row).replace(/\.$/, "")}, at ${clock(row.estimated_start)}${late}${note ? ` (${note})` : ""}.`;
  }

  async function job(id) {
    const row = await ask(`/api/v1/jobs/${encodeURIComponent(id)}`);
    return {
      title: row.name, verdict: row.why, heading: "Timeline", starts: starts(row), advice: row.advice,
      attempts: row.chain.length > 1 ? row.chain.map((one) => ({ ...one, here: one.id === row.id })) : [],
      lines: row.timeline.map((line) => ({ ...line, tag: row.chain.length > 1 ? `#${line.attempt}` : "" })),
      facts: [
        ["State", row.conclusion ? `${row.state}: ${row.conclusion}` : row.state], ["Repository", row.repo], ["Workflow", row.workflow], ["Pool", row.pool || "none"],
        ["Labels", row.labels.join(", ")], ["Will likely get", row.expected_instance ? linkTo(machineLink(row.expected_instance), row.expected_instance) : ""], ["Machine", row.instance ? linkTo(machineLink(row.instance), row.instance) : ""],
        ["Waited", took(row.queued_at, row.started_at)], ["Ran", took(row.started_at, row.finished_at)],
        ["On demand since", row.spilled ? `${clock(row.spilled.since)} ${row.spilled.reason}` : ""],
        ["Predicted", row.prediction ? `to wait ${short(row.prediction.wait_s)}, ${Math.round(100 * row.prediction.breach)} % likely beyond ${short(row.prediction.target_s)}` : ""],
        ["Attempt", row.attempt > 1 ? row.attempt : ""], ["Queued again as", row.successor ? linkTo(jobLink(row.successor), row.successor) : ""],
        ["Job", row.id], ["", forgeLink(row)],
      ],
    };
  }

  async function machine(id) {
    const row = await ask(`/api/v1/instances/${encodeURIComponent(id)}`), place = row.capacity_pool;
    const served = row.served;
    return {
      title: row.id, heading: "History", lines: row.timeline, verdict: row.why, proof: row.evidence,
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
