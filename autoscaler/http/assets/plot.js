"use strict";
// The two plots, drawn as SVG from /api/v1/history and, at the right edge, from the live state. A gap is a time without samples.

const Plot = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const PAD = { top: 14, right: 8, bottom: 18, left: 38 };
  const LIVE_EVERY_MS = 2000;
  let past = null;
  let live = []; // [{at, pools: {name: point}}], what the stream said since the last history

  function shape(name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  const stepOver = (steps, value) => steps.find((step) => step >= value) || value;
  const COUNTS = [4, 6, 10, 20, 40, 60, 100, 200, 400, 600, 1000, 2000, 4000, 10000];
  const SPANS = [10, 20, 40, 60, 120, 240, 600, 1200, 2400, 3600, 7200, 14400, 28800, 86400];
  const TARGETS = [2, 4, 6, 10, 20, 40, 100, 200, 1000];

  // Runs of [x, y]: cut where nothing was sampled for longer than `gapMs`.
  function paths(points, gapMs, x, y) {
    const runs = [];
    let last = -Infinity;
    for (const [at, value] of points) {
      if (at - last > gapMs) runs.push([]);
      runs[runs.length - 1].push([x(at), y(value)]);
      last = at;
    }
    return runs;
  }

  function drawFrame(svg, options, width, height, x, y) {
    for (const part of [0, 0.5, 1]) {
      const at = y(options.top * part);
      svg.append(shape("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: at, y2: at }));
      svg.append(shape("text", { x: PAD.left - 6, y: at + 4, "text-anchor": "end" }, options.label(options.top * part)));
    }
    for (const [part, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      const minutes = options.minutes * (1 - part);
      svg.append(shape("text", { x: x(options.from + part * (options.to - options.from)), y: height - 3, "text-anchor": anchor }, minutes ? `${minutes} min ago` : "now"));
    }
  }

  function drawSeries(svg, one, options, x, y) {
    for (const run of paths(one.points, options.gapMs, x, y)) {
      if (run.length === 1) run.push([run[0][0] + 1.5, run[0][1]]);
      const line = run.map(([a, b], index) => `${index ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
      if (one.area) {
        const end = `L${run[run.length - 1][0].toFixed(1)} ${y(0)}L${run[0][0].toFixed(1)} ${y(0)}Z`;
        svg.append(shape("path", { class: `area ${one.name}`, d: line + end }));
      }
      svg.append(shape("path", { class: `line ${one.name}`, d: line }));
    }
  }

  // series: [{name, points: [[ms, value]], area}], options: {from, to, minutes, gapMs, top, label(value), target, title, say(index)}
  function draw(holder, series, options) {
    const width = holder.clientWidth || 300, height = holder.clientHeight || 120;
    const x = (at) => PAD.left + (at - options.from) / (options.to - options.from) * (width - PAD.left - PAD.right);
    const y = (value) => height - PAD.bottom - Math.min(value / options.top, 1) * (height - PAD.top - PAD.bottom);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.title });
    drawFrame(svg, options, width, height, x, y);
    for (const one of series) drawSeries(svg, one, options, x, y);
    if (options.target !== undefined) {
      const at = y(options.target);
      svg.append(shape("line", { class: "target", x1: PAD.left, x2: width - PAD.right, y1: at, y2: at }));
      svg.append(shape("text", { class: "target-word", x: PAD.left + 4, y: at - 4 }, "target"));
    }
    const cursor = shape("line", { class: "cursor", y1: PAD.top, y2: height - PAD.bottom, visibility: "hidden" });
    const said = el("div", "said");
    const point = () => {
      const times = series[0].points, wanted = options.from + (holder.pointed - PAD.left) / (width - PAD.left - PAD.right) * (options.to - options.from);
      said.hidden = holder.pointed === undefined || !times.length;
      cursor.setAttribute("visibility", said.hidden ? "hidden" : "visible");
      if (said.hidden) return;
      let index = 0;
      times.forEach(([at], i) => { if (Math.abs(at - wanted) < Math.abs(times[index][0] - wanted)) index = i; });
      const at = x(times[index][0]);
      cursor.setAttribute("x1", at); cursor.setAttribute("x2", at);
      put(said, `${clock(times[index][0])} ${options.say(index)}`);
      said.style.left = `${Math.max(0, Math.min(at + 8, width - said.offsetWidth))}px`;
    };
    svg.append(cursor);
    svg.addEventListener("pointermove", (event) => { holder.pointed = event.clientX - svg.getBoundingClientRect().left; point(); });
    svg.addEventListener("pointerleave", () => { holder.pointed = undefined; point(); });
    holder.replaceChildren(svg, said);
    point();
  }

  // All points of the window, oldest first: the history's, then what the stream said since, then this moment.
  function columns(from, to) {
    const found = [];
    const since = Date.parse(past.since), stepMs = past.step_s * 1000, until = Date.parse(past.until);
    const count = past.pools.length ? past.pools[0].points.length : 0;
    for (let i = 0; i < count; i++) {
      const pools = {};
      for (const pool of past.pools) if (pool.points[i]) pools[pool.name] = pool.points[i];
      found.push({ at: Math.min(since + (i + 0.5) * stepMs, until), pools });
    }
    found.push(...live.filter((point) => point.at > until));
    const last = live[live.length - 1];
    if (last && to - last.at < 15000) found.push({ at: to, pools: aged(last, to) });
    return found.filter((point) => point.at >= from && Object.keys(point.pools).length);
  }

  // The same point later: whoever waits has waited longer.
  function aged(point, to) {
    const pools = {};
    for (const [name, one] of Object.entries(point.pools)) pools[name] = { ...one, wait_s: one.queued ? one.wait_s + (to - point.at) / 1000 : 0 };
    return pools;
  }

  function show() {
    if (!past) return;
    const chosen = $("plot-pool").value;
    const targets = new Map(past.pools.filter((pool) => !chosen || pool.name === chosen).map((pool) => [pool.name, Math.max(pool.target_s, 1)]));
    if (!targets.size) return;
    const minutes = past.minutes, to = now(), from = to - minutes * 60000;
    const found = columns(from, to).filter((point) => [...targets.keys()].some((name) => point.pools[name]));
    const of = (point, pick) => [...targets].filter(([name]) => point.pools[name]).map(([name, target]) => pick(point.pools[name], target));
    const sum = (pick) => found.map((point) => [point.at, of(point, pick).reduce((a, b) => a + b, 0)]);
    const single = targets.size === 1 ? [...targets.values()][0] : 0;
    const wait = found.map((point) => [point.at, Math.max(...of(point, (p, target) => single ? p.wait_s : p.wait_s / target))]);
    const highest = (...lists) => Math.max(0, ...lists.flat().map(([, value]) => value));
    const words = minutes === 60 ? "The last hour" : `The last ${minutes} minutes`;
    const base = { from, to, minutes, gapMs: Math.max(2.5 * past.step_s, 25) * 1000 };
    put($("plot-title"), words);
    put($("plot-wait-note"), single ? "" : "in targets, the worst pool at each time");
    draw($("plot-wait"), [{ name: "wait", points: wait, area: true }], {
      ...base, top: stepOver(single ? SPANS : TARGETS, Math.max((single || 1) * 1.3, highest(wait))), target: single || 1,
      label: single ? short : (v) => v ? `${v}×` : "0", title: `${words}: the oldest wait, against the target`,
      say: (i) => single ? span(wait[i][1]) : `${wait[i][1].toFixed(2)} targets`,
    });
    const machines = sum((p) => p.instances), running = sum((p) => p.running), queued = sum((p) => p.queued);
    draw($("plot-fleet"), [
      { name: "running", points: running, area: true }, { name: "machines", points: machines }, { name: "queued", points: queued },
    ], {
      ...base, top: stepOver(COUNTS, highest(machines, running, queued)), label: (v) => v.toLocaleString("en"), title: `${words}: machines, running and waiting jobs`,
      say: (i) => `${machines[i][1]} machines, ${running[i][1]} running, ${queued[i][1]} waiting`,
    });
  }

  function remember(state) {
    const pools = {};
    for (const pool of state.pools) pools[pool.name] = { wait_s: pool.oldest_wait_s, queued: pool.queued, running: pool.running, instances: Object.values(pool.instances).reduce((a, b) => a + b, 0) };
    const at = Date.parse(state.now), before = live[live.length - 2];
    if (before && at - before.at < LIVE_EVERY_MS) live.pop();
    live.push({ at, pools });
    if (live.length > 60) live = live.slice(-60);
  }

  async function read() {
    try { past = await ask("/api/v1/history"); } catch { return; /* the next round tries again */ }
    show();
  }

  return { read, remember, show };
})();
