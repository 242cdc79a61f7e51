"use strict";
// Wait targets and how they are kept, how good the predictions are, the error budget. Asked for now and then, not streamed.

const Waits = (() => {
  const EVERY_MS = 10000;
  const SVG = "http://www.w3.org/2000/svg";
  const SIDE = 200, EDGE = 30;
  let asked = 0, scored = [];

  const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0).replace(/\.0$/, "")} %`;
  const sentence = (words) => (words ? `${capital(words).replace(/\.$/, "")}.` : "");

  // ---------------------------------------------------------------- targets

  function make() {
    const row = el("tr"), name = el("th");
    name.scope = "row";
    name.append(el("b"));
    const target = el("td"), kept = el("td"), at = el("td", "now-cell"), against = el("td", "against");
    for (const cell of [target, kept, at]) cell.append(el("span"), el("span", "seen"));
    against.append(el("div"));
    row.append(name, target, kept, at, against);
    return row;
  }

  function fill(row, pool) {
    const [name, target, kept, at, against] = row.children;
    put(name.firstChild, pool.name);
    put(target.children[0], `${percent(pool.quantile)} within ${short(pool.target_s)}`);
    put(target.children[1], pool.target_note);
    target.children[1].classList.toggle("missing", !pool.target_reachable);
    const late = pool.late_share, isMissed = late !== null && late > 1 - pool.quantile + 1e-9;
    put(kept.children[0], late === null ? "no job scored yet" : `${percent(1 - late)} in time`);
    kept.children[0].className = late === null ? "quiet" : isMissed ? "bad" : "good";
    put(kept.children[1], late === null ? "" : `${percent(late)} of ${plural(pool.scored_jobs, "job", "jobs")} late`);
    put(at.children[0], pool.waiting ? `${pool.waiting.toLocaleString("en")} waiting${pool.late ? `, ${pool.late} late` : ""}, oldest ${short(pool.oldest_wait_s)}` : "nobody waits");
    const said = pool.prediction;
    put(at.children[1], said ? `newest: about ${short(said.wait_s)}, ${percent(said.breach)} likely to be late` : "");
    const lines = pool.against.map((one) => ({ key: `${one.by} ${one.reason}`, text: `${plural(one.jobs, "job waits", "jobs wait")}: ${one.reason.replace(/\.$/, "")}.` }));
    const spill = pool.spill;
    if (spill) lines.push({ key: "spill", text: `${plural(spill.machines, "machine", "machines")} on demand since ${clock(spill.since)}${spill.reason ? `, ${spill.reason.replace(/\.$/, "")}` : ""}.` });
    if (pool.spilled_today_usd) lines.push({ key: "money", text: `${usd(pool.spilled_today_usd)} for ended machines on demand today.` });
    rows(against.firstChild, lines, (line) => line.key, () => el("p"), (node, line) => put(node, line.text), "Nothing.");
  }

  // ---------------------------------------------------------------- predictions

  function shape(name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  const x = (share) => EDGE + share * SIDE;
  const y = (share) => 6 + SIDE * (1 - share);

  // Observed over predicted: a dot on the diagonal was right. The larger a dot, the more jobs stand behind it.
  function plot(one) {
    const svg = shape("svg", { viewBox: `0 0 ${SIDE + EDGE + 8} ${SIDE + EDGE}`, role: "img", "aria-label": words(one) });
    for (const share of [0, 0.5, 1]) {
      svg.append(shape("line", { class: "axis", x1: x(0), x2: x(1), y1: y(share), y2: y(share) }), shape("line", { class: "axis", x1: x(share), x2: x(share), y1: y(0), y2: y(1) }));
      svg.append(shape("text", { x: EDGE - 5, y: y(share) + 4, "text-anchor": "end" }, percent(share)), shape("text", { x: x(share), y: y(0) + 14, "text-anchor": share === 1 ? "end" : "middle" }, percent(share)));
    }
    svg.append(shape("line", { class: "diagonal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
    for (const bin of one.bins.filter((each) => each.jobs)) {
      const dot = shape("circle", { class: "dot", cx: x(bin.predicted).toFixed(1), cy: y(bin.observed).toFixed(1), r: (3 + 9 * Math.sqrt(bin.jobs / one.jobs)).toFixed(1) });
      dot.append(shape("title", {}, `predicted ${percent(bin.predicted)}, were late ${percent(bin.observed)}, ${plural(bin.jobs, "job", "jobs")}`));
      svg.append(dot);
    }
    $("predictions-plot").replaceChildren(svg);
  }

  function words(one) {
    if (!one || !one.jobs) return "No prediction has been scored yet: each is, once its job has started.";
    const off = one.bins.filter((bin) => bin.jobs >= 0.05 * one.jobs).reduce((most, bin) => Math.max(most, Math.abs(bin.observed - bin.predicted)), 0);
    return `${plural(one.jobs, "job", "jobs")} of the last ${scored.days} days. In tenths with 5 % of the jobs or more, what happened is at most ${Math.round(100 * off)} points from what was predicted. Brier score ${one.brier.toFixed(3)} (0 is perfect).`;
  }

  function makeBin() {
    const row = el("tr");
    row.append(el("td"), el("td"), el("td"));
    return row;
  }

  function showPredictions() {
    const pick = $("predictions-pool"), chosen = pick.value;
    const names = scored.predictions.filter((one) => one.pool !== null).map((one) => one.pool);
    if ([...pick.options].slice(1).map((option) => option.value).join("\n") !== names.join("\n")) {
      pick.replaceChildren(new Option("all", ""), ...names.map((name) => new Option(name, name)));
      pick.value = names.includes(chosen) ? chosen : "";
    }
    const one = scored.predictions.find((each) => (each.pool || "") === pick.value);
    const bins = one && one.jobs ? one.bins.filter((bin) => bin.jobs) : [];
    put($("predictions-note"), words(one));
    $("predictions-table").hidden = !bins.length;
    if (bins.length) plot(one); else $("predictions-plot").replaceChildren();
    rows($("predictions"), bins, (bin) => bin.predicted.toFixed(4), makeBin, (row, bin) => {
      put(row.children[0], percent(bin.predicted));
      put(row.children[1], percent(bin.observed));
      put(row.children[2], bin.jobs.toLocaleString("en"));
    });
  }

  // ---------------------------------------------------------------- error budget

  function makeBudget() {
    const item = el("li", "burn"), bar = el("span", "bar");
    bar.append(el("i"));
    item.append(el("b"), el("span", "amount"), bar, el("span", "said"), el("ul", "announced"));
    return item;
  }

  function fillBudget(item, pool) {
    const [name, amount, bar, said, announced] = item.children, budget = pool.budget, burn = budget.burn;
    put(name, pool.name);
    put(amount, burn === null ? "not measured yet" : burn < 0.05 ? "not used" : `burns ${burn.toFixed(burn < 10 ? 1 : 0)} times what is allowed`);
    amount.classList.toggle("over", burn !== null && burn > 2);
    bar.hidden = burn === null;
    bar.title = "The mark is what is allowed";
    const fillbar = bar.firstChild;
    fillbar.className = burn > 2 ? "over" : burn > 1 ? "near" : "";
    fillbar.style.setProperty("--share", `${Math.min(100, 50 * (burn || 0)).toFixed(1)}%`);
    const spot = budget.spot_share < 1 ? `Only ${percent(budget.spot_share)} of its new machines are spot because of that` : "Spot as configured";
    put(said, [`${percent(budget.allowed)} of its jobs may be hurt`, spot, budget.reason].filter(Boolean).map(sentence).join(" "));
    rows(announced, budget.announced, (line) => `${line.at}|${line.text}`, () => el("li"), (node, line) => put(node, `${clock(line.at)} ${line.text}`));
  }

  // ---------------------------------------------------------------- reading

  function show(answer) {
    rows($("waits"), answer.pools, (pool) => pool.name, make, fill);
    $("waits-table").hidden = !answer.pools.length;
    put($("waits-note"), answer.pools.length ? "" : "No pool is configured.");
    rows($("budget"), answer.pools, (pool) => pool.name, makeBudget, fillBudget, "No pool is configured.");
  }

  async function read() {
    const mine = ++asked;
    try {
      const [waits, predictions] = await Promise.all([ask("/api/v1/waits"), ask("/api/v1/predictions")]);
      if (mine !== asked) return;
      scored = predictions;
      show(waits);
      showPredictions();
    } catch { /* the next one shows it; a signed-out page is at the login by now */ }
  }

  function start() {
    $("predictions-pool").addEventListener("change", showPredictions);
    setInterval(read, EVERY_MS);
    read();
  }

  return { start };
})();
