"use strict";
// Where machines come from: capacity pools with price, learned risk and cooldowns. Asked for now and then, not streamed.

const Offerings = (() => {
  const EVERY_MS = 10000;
  const SHOWN = 12;
  const HIGH_RISK = 0.5; // interruptions an hour that fill the bar: half of all one-hour jobs would be lost
  let asked = 0, names = "";

  const dollars = (amount) => (amount ? `${usd(amount)}/h` : "free");
  const tidy = (x) => (x >= 10 ? Math.round(x).toLocaleString("en") : String(Number(x.toPrecision(2))));
  const placeOf = (one) => [one.provider, one.zone, one.machine_type, one.capacity_type].join("/");

  function evidence(one) {
    if (one.capacity_type !== "spot") return "not taken back";
    const seen = one.evidence;
    const hours = seen.hours >= 0.001 ? `${seen.hours < 1 ? `${Math.ceil(60 * seen.hours)} min` : `${tidy(seen.hours)} h`} seen, ${seen.interruptions >= 0.05 ? tidy(seen.interruptions) : "none"} interrupted` : one.machines ? "none of ours ended yet" : "no machine of ours yet";
    const refused = seen.refused >= 0.05 ? `${tidy(seen.refused)} of ${tidy(seen.asked)} launches refused` : "";
    return [hours, refused].filter(Boolean).join(" · ");
  }

  function make() {
    const row = el("tr");
    const place = el("th"), risk = el("td", "risk"), state = el("td", "state");
    place.scope = "row";
    place.append(el("b"), el("span", "tag"), el("span", "where"));
    const bar = el("span", "riskbar");
    bar.append(el("i"));
    risk.append(bar, el("span", "rate"), el("span", "seen"));
    state.append(el("span", "tag"), el("span", "why"));
    row.append(place, el("td", "price"), risk, el("td", "count"), state);
    return row;
  }

  function fill(row, one) {
    const [place, price, risk, count, state] = row.children;
    put(place.children[0], one.machine_type);
    put(place.children[1], spaced(one.capacity_type).replace(" ", "-"));
    place.children[1].classList.toggle("bought", one.capacity_type !== "spot");
    put(place.children[2], [one.zone, one.provider].join(" · "));
    const full = one.on_demand_usd_hour, saved = full && one.capacity_type === "spot" ? Math.round(100 * (1 - one.price_usd_hour / full)) : 0;
    put(price, dollars(one.price_usd_hour) + (saved > 0 ? ` (${saved} % off)` : ""));
    risk.children[0].hidden = one.capacity_type !== "spot";
    const share = Math.min(1, one.risk_per_hour / HIGH_RISK);
    const fillbar = risk.querySelector("i");
    fillbar.style.setProperty("--share", `${Math.round(100 * share)}%`);
    fillbar.className = share >= 0.5 ? "high" : share >= 0.2 ? "some" : "";
    put(risk.children[1], one.capacity_type === "spot" ? `${tidy(one.risk_per_hour)} an hour` : "");
    put(risk.children[2], evidence(one));
    risk.title = one.capacity_type === "spot" ? `Expected interruptions of a machine per hour. Before we saw anything: ${tidy(one.prior_per_hour)}` : "";
    put(count, one.machines ? plural(one.machines, "machine", "machines") : "");
    fillState(state, one);
  }

  function fillState(cell, one) {
    const [badge, why] = cell.children, cooling = one.cooling;
    cell.title = "";
    const left = cooling ? (Date.parse(cooling.until) - now()) / 1000 : 0;
    const ranks = one.pools.filter((in_) => in_.rank !== null);
    if (cooling && left > 0) {
      put(badge, cooling.kind === "quota" ? "quota" : "cooling");
      badge.className = "tag cooling";
      const again = cooling.failures > 1 ? `, ${cooling.failures} times in a row` : "";
      put(why, `${short(left)} more${again}: ${cooling.reason}`);
      cell.title = cooling.reason;
    } else if (ranks.length) {
      put(badge, "open");
      badge.className = "tag open";
      put(why, ranks.slice(0, 3).map((in_) => `no. ${in_.rank} for ${in_.pool}`).join(", ") + (ranks.length > 3 ? ` and ${ranks.length - 3} more` : ""));
    } else {
      put(badge, "not used");
      badge.className = "tag";
      put(why, one.pools.length ? `${one.pools[0].pool}: ${one.pools[0].excluded}` : "");
    }
  }

  function showPicks() {
    const pick = $("offerings-pool"), found = state ? state.pools.map((pool) => pool.name) : [];
    if (found.join("\n") === names) return;
    names = found.join("\n");
    const chosen = pick.value;
    pick.replaceChildren(new Option("all", ""), ...found.map((name) => new Option(name, name)));
    pick.value = found.includes(chosen) ? chosen : "";
  }

  function show(answer) {
    const cooling = answer.offerings.filter((one) => one.cooling).length;
    const cools = answer.offerings.filter((one) => one.cooling && !one.machines);
    const used = answer.offerings.filter((one) => one.machines).sort((a, b) => b.machines - a.machines);
    const open = answer.offerings.filter((one) => !one.cooling && !one.machines);
    const shown = [...used.slice(0, SHOWN - 6), ...cools.slice(0, 3)];
    shown.push(...open.slice(0, SHOWN - shown.length));
    rows($("offerings"), shown, placeOf, make, fill);
    $("offerings-table").hidden = !shown.length;
    const words = answer.scopes.map((scope) => `${[scope.region, scope.zone, scope.machine_type, scope.capacity_type && spaced(scope.capacity_type)].filter(Boolean).join(" ") || scope.provider} is closed for ${short((Date.parse(scope.until) - now()) / 1000)} more: ${scope.reason}`);
    rows($("offerings-scopes"), words.map((text) => ({ text })), (one) => one.text, () => el("p", "blocked"), (node, one) => put(node, one.text));
    put($("offerings-note"), shown.length ? `${plural(answer.total, "capacity pool", "capacity pools")}${cooling ? `, ${cooling} cooling` : ""}` : "");
    put($("offerings-more"), shown.length ? (answer.total > shown.length ? `and ${(answer.total - shown.length).toLocaleString("en")} more, at /api/v1/offerings?all=1` : "") : "No provider offers a machine for any pool yet.");
  }

  async function read() {
    const mine = ++asked;
    showPicks();
    const pool = $("offerings-pool").value;
    try {
      const answer = await ask(`/api/v1/offerings?best=${pool ? SHOWN : 3}${pool ? `&pool=${encodeURIComponent(pool)}` : ""}`);
      if (mine === asked) show(answer);
    } catch { /* the next one shows it; a signed-out page is at the login by now */ }
  }

  function start() {
    $("offerings-pool").addEventListener("change", read);
    setInterval(read, EVERY_MS);
    read();
  }

  return { start, showPicks };
})();
