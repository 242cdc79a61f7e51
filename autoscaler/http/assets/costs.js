"use strict";
// Money: what machines cost in a period, by what it bought and who it is charged to. Asked for now and then, not streamed.

const Costs = (() => {
  const EVERY_MS = 30000;
  const SHOWN = 8;
  const USES = { job: "jobs", idle: "idle", boot: "booting", lost: "lost work", stopped: "stopped disks" };
  let asked = 0;

  function since() {
    const days = Number($("costs-days").value);
    return new Date(now() - (days - 1) * 86400000).toISOString().slice(0, 10);
  }

  const money = (amount) => `${amount < 0 ? "-" : ""}${usd(Math.abs(amount)) || "$0"}`;
  const percent = (part, whole) => (whole > 0 ? `${Math.round(100 * part / whole)} %` : "");

  function share(bar, one) {
    rows(bar, Object.keys(USES).filter((use) => one.usd_by_use[use] > 0), (use) => use, (use) => el("i", `u-${use}`), (node, use) => {
      node.style.setProperty("--share", `${100 * one.usd_by_use[use] / one.usd}%`);
      node.title = `${USES[use]}: ${money(one.usd_by_use[use])} (${percent(one.usd_by_use[use], one.usd)})`;
    });
  }

  function makeLine() {
    const line = el("li", "cost");
    line.append(el("b"), el("span", "amount"), el("div", "split"));
    line.lastChild.setAttribute("aria-hidden", "true");
    return line;
  }

  function fillLine(line, one) {
    const [name, amount, bar] = line.children;
    put(name, one.name);
    const saved = one.savings_usd > 0 ? `, ${money(one.savings_usd)} less than on demand` : "";
    put(amount, `${money(one.usd)}${saved}`);
    share(bar, one);
  }

  function show(costs) {
    const total = costs.total, compared = total.on_demand_equivalent_usd;
    const saved = total.savings_usd;
    put($("costs-total"), money(total.usd));
    put($("costs-saved"), compared > 0 && saved > 0 ? `${money(saved)} (${percent(saved, compared)}) less than on demand` : "");
    share($("costs-split"), total);
    put($("costs-uses"), Object.keys(USES).filter((use) => total.usd_by_use[use] > 0).map((use) => `${USES[use]} ${money(total.usd_by_use[use])}`).join(", "));
    const by = costs[`by_${$("costs-by").value}`];
    rows($("costs"), by.filter((one) => one.usd > 0).slice(0, SHOWN), (one) => one.name, makeLine, fillLine, "Nothing was paid for yet.");
    put($("costs-more"), by.length > SHOWN ? `and ${by.length - SHOWN} more, in the table` : "");
    $("costs-csv").href = `/api/v1/costs.csv?since=${since()}`;
  }

  async function read() {
    const mine = ++asked;
    try {
      const costs = await ask(`/api/v1/costs?since=${since()}`);
      if (mine === asked) show(costs);
    } catch { /* the next one shows it; a signed-out page is at the login by now */ }
  }

  function start() {
    for (const id of ["costs-days", "costs-by"]) $(id).addEventListener("change", read);
    setInterval(read, EVERY_MS);
    read();
  }

  return { start };
})();
