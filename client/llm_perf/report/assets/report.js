"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("timeline");
  const said = document.getElementById("timeline-said");
  const requests = unpack(data.requests, data.unit_s);
  const lanes = place(requests);
  const end = data.length_s;
  const plots = [];
  let zooming = false;

  function unpack(numbers, unit) {
    const found = [];
    let sent = 0;
    for (let at = 0; at < numbers.length; at += 4) {
      const [since, queue, wait, flow] = numbers.slice(at, at + 4);
      sent += since;
      const first = sent + (wait >> 1);
      found.push({ sent: sent * unit, queued: (sent + queue) * unit, first: first * unit,
        end: (first + flow) * unit, failed: wait & 1, lane: 0 });
    }
    return found;
  }
  // each request in the lowest row that is free when it is sent
  function place(list) {
    const free = [];
    for (const each of list) {
      let lane = free.findIndex((until) => until <= each.sent);
      if (lane < 0) lane = free.length;
      free[lane] = each.end;
      each.lane = lane;
    }
    return free.length;
  }
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function bars(plot) {
    const { ctx, bbox } = plot;
    const low = plot.scales.x.min, high = plot.scales.x.max;
    const x = (t) => plot.valToPos(t, "x", true), y = (v) => plot.valToPos(v, "y", true);
    const tall = Math.max(1, (y(0) - y(1)) * 0.86);
    const paint = (from, to, lane, css) => {
      if (to <= low || from >= high) return;
      const left = x(Math.max(from, low));
      ctx.fillStyle = css;
      ctx.fillRect(left, y(lane + 1), Math.max(x(Math.min(to, high)) - left, 0.6), tall);
    };
    const [wait, queue, flow, bad] = ["--c0", "--c1", "--c2", "--limit"].map(colour);
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const each of requests) {
      if (each.end < low || each.sent > high) continue;
      if (each.failed) { paint(each.sent, each.end, each.lane, bad); continue; }
      paint(each.first, each.end, each.lane, flow);
      paint(each.queued, each.first, each.lane, wait);
      if (each.queued > each.sent) paint(each.sent, each.queued, each.lane, queue);
    }
    ctx.restore();
  }
  function under(plot) {
    const { left, top } = plot.cursor;
    if (left === undefined || left < 0) return;
    const t = plot.posToVal(left, "x"), lane = Math.floor(plot.posToVal(top, "y"));
    const hit = requests.find((r) => r.lane === lane && r.sent <= t && t <= r.end);
    const ms = (s) => `${(s * 1000).toFixed(1)} ms`;
    said.textContent = !hit ? `${t.toFixed(3)} s` : `${t.toFixed(3)} s: request sent at ` +
      `${hit.sent.toFixed(3)} s, ` + (hit.failed ? `failed after ${ms(hit.end - hit.sent)}` :
      `first token after ${ms(hit.first - hit.sent)}, last after ${ms(hit.end - hit.sent)}`);
  }
  function zoom(from, to) {
    const width = Math.min(Math.max(to - from, end / 2000), end);
    const low = Math.min(Math.max(from, 0), end - width);
    zooming = true;
    for (const plot of plots) plot.setScale("x", { min: low, max: low + width });
    zooming = false;
    said.textContent = `Shown: ${low.toFixed(3)} to ${(low + width).toFixed(3)} s`;
  }
  function act(what) {
    const { min, max } = plots[0].scales.x, width = max - min;
    ({ in: () => zoom(min + width / 4, max - width / 4),
      out: () => zoom(min - width / 2, max + width / 2),
      left: () => zoom(min - width / 4, max - width / 4),
      right: () => zoom(min + width / 4, max + width / 4),
      all: () => zoom(0, end) })[what]();
  }
  const whole = [1, 2, 5].flatMap((f) => [0, 1, 2, 3, 4].map((d) => f * 10 ** d)).sort((a, b) => a - b);
  const compact = new Intl.NumberFormat("en", { notation: "compact" });
  const axis = (more) => ({ stroke: () => colour("--muted"), labelFont: "12px system-ui",
    font: "12px system-ui", grid: { stroke: () => colour("--grid"), width: 1 },
    ticks: { stroke: () => colour("--grid"), width: 1 }, ...more });
  function add(height, series, values, y, hooks) {
    const options = {
      width: box.clientWidth, height, legend: { show: !hooks.draw }, series,
      scales: { x: { time: false }, y },
      axes: [axis({ size: 34 }), axis({ size: 64, incrs: y.incrs,
        values: (_, ticks) => ticks.map((tick) => compact.format(tick)) })], title: y.title,
      cursor: { sync: { key: "llm_perf" }, drag: { x: true, y: false } },
      hooks: { ...hooks, setScale: [(plot, key) => {
        if (key !== "x" || zooming || plots.length < 2) return;
        zoom(plot.scales.x.min, plot.scales.x.max);
      }] },
    };
    plots.push(new uPlot(options, values, box));
  }
  add(Math.min(420, 110 + lanes * 12), [{ label: "Second" }, { label: "slot", show: true, paths: () => null,
    points: { show: false } }], [[0, end], [0, lanes]],
    { range: [0, Math.max(lanes, 1)], title: "Requests by slot", incrs: whole },
    { draw: [bars], setCursor: [under] });
  for (const panel of data.server) {
    add(150, [{ label: "Second" }, ...panel.lines.map((line, at) => ({ label: line.label,
      stroke: () => colour(`--c${at % 6}`), width: 1.5, spanGaps: true }))],
      [panel.at_s, ...panel.lines.map((line) => line.values)],
      { title: panel.name, range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.08 : 1] }, {});
  }
  zoom(0, end);
  for (const button of document.querySelectorAll("[data-do]"))
    button.addEventListener("click", () => act(button.dataset.do));
  const keys = { ArrowLeft: "left", ArrowRight: "right", "+": "in", "=": "in", "-": "out", 0: "all" };
  box.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act(keys[event.key]);
  });
  const again = () => plots.forEach((plot) => plot.redraw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  new ResizeObserver(() => plots.forEach((plot) =>
    plot.setSize({ width: box.clientWidth, height: plot.height }))).observe(box);
})();
