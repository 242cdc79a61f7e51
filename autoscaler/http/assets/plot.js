"use strict";
// The two plots of the last hour, drawn as SVG from /api/v1/history. Gaps are times without samples; one missing step is bridged.

const Plot = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const PAD = { top: 14, right: 6, bottom: 18, left: 34 };

  function shape(name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function niceTop(value) {
    const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
    return [1, 2, 3, 5, 10].map((step) => step * power).find((top) => top >= value) || value;
  }

  function paths(values, x, y) {
    const runs = [];
    let run = [], missing = 0;
    values.forEach((value, index) => {
      if (value === null) { if (++missing > 1 && run.length) { runs.push(run); run = []; } return; }
      missing = 0;
      run.push([x(index), y(value)]);
    });
    if (run.length) runs.push(run);
    return runs;
  }

  // series: [{name, values, area}], options: {top, label(value), target, targetWord, since, stepMs, say(index)}
  function draw(holder, series, options) {
    const width = holder.clientWidth || 300, height = holder.clientHeight || 120;
    const count = series[0].values.length;
    const x = (index) => PAD.left + (index + 0.5) / count * (width - PAD.left - PAD.right);
    const y = (value) => height - PAD.bottom - Math.min(value / options.top, 1) * (height - PAD.top - PAD.bottom);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.title });
    for (const part of [0, 0.5, 1]) {
      const at = y(options.top * part);
      svg.append(shape("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: at, y2: at }));
      const word = options.label(options.top * part);
      if (word) svg.append(shape("text", { x: PAD.left - 6, y: at + 4, "text-anchor": "end" }, word));
    }
    for (const part of [0, 0.5, 1]) {
      const at = new Date(options.since + part * count * options.stepMs);
      const anchor = part === 0 ? "start" : part === 1 ? "end" : "middle";
      const clock = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
      svg.append(shape("text", { x: PAD.left + part * (width - PAD.left - PAD.right), y: height - 3, "text-anchor": anchor }, clock));
    }
    for (const one of series) {
      for (const run of paths(one.values, x, y)) {
        if (run.length === 1) run.push([run[0][0] + 1, run[0][1]]);
        const line = run.map(([a, b], index) => `${index ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
        if (one.area) {
          const end = `L${run[run.length - 1][0].toFixed(1)} ${y(0)}L${run[0][0].toFixed(1)} ${y(0)}Z`;
          svg.append(shape("path", { class: `area ${one.name}`, d: line + end }));
        }
        svg.append(shape("path", { class: `line ${one.name}`, d: line }));
      }
    }
    if (options.target !== undefined) {
      const at = y(options.target);
      svg.append(shape("line", { class: "target", x1: PAD.left, x2: width - PAD.right, y1: at, y2: at }));
      svg.append(shape("text", { class: "target-word", x: width - PAD.right, y: at - 4, "text-anchor": "end" }, options.targetWord));
    }
    const cursor = shape("line", { class: "cursor", y1: PAD.top, y2: height - PAD.bottom, visibility: "hidden" });
    svg.append(cursor);
    const said = document.createElement("div");
    said.className = "said";
    said.hidden = true;
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const share = (event.clientX - box.left - PAD.left) / (box.width - PAD.left - PAD.right);
      const index = Math.max(0, Math.min(count - 1, Math.floor(share * count)));
      cursor.setAttribute("x1", x(index)); cursor.setAttribute("x2", x(index));
      cursor.setAttribute("visibility", "visible");
      said.hidden = false;
      said.textContent = options.say(index);
      said.style.left = `${Math.max(0, Math.min(x(index) + 8, width - said.offsetWidth))}px`;
    });
    svg.addEventListener("pointerleave", () => { said.hidden = true; cursor.setAttribute("visibility", "hidden"); });
    holder.replaceChildren(svg, said);
  }

  return { draw, niceTop };
})();
