// The picture: points, intervals, a step line, a shaded limit; drawn as SVG, so that it prints, scales and follows the theme.
const SVG = "http://www.w3.org/2000/svg";
function shape(parent, kind, attributes, text) {
  const made = document.createElementNS(SVG, kind);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}
function nice(low, high, wanted) {
  const raw = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step) ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return ticks;
}
function logarithmic(low, high, wanted) {
  const all = [];
  for (let power = -4; power < 7; power++) [1, 1.5, 2, 3, 4, 6, 8].forEach(m => { const t = m * 10 ** power; if (t >= low * 0.999 && t <= high * 1.001) all.push(t); });
  const skip = Math.ceil(all.length / wanted);
  return all.filter((_, i) => i % skip === 0);
}
const plain = value => String(Number(value.toPrecision(4)));
/* The best that a limit on x gets: between two points nothing was measured, so the line goes in steps, and never through a worse one. */
function envelope(points, larger) {
  const ordered = [...points].sort((a, b) => larger ? b.x - a.x : a.x - b.x), kept = [];
  ordered.forEach(p => { if (!kept.length || p.y > kept[kept.length - 1].y) kept.push(p); });
  return kept.reverse();
}
function drawChart(host, view) {
  const width = Math.max(280, host.clientWidth), narrow = width < 600, height = narrow ? 360 : 440;
  const box = { left: 78, right: width - 16, top: 14, bottom: height - 46 };
  const everything = [...view.front, ...view.others, ...view.candidates, view.dense].filter(p => p.inside !== false);
  const xs = everything.flatMap(p => [p.low ?? p.x, p.high ?? p.x]), ys = everything.map(p => p.y);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const zoom = view.zoom;
  if (zoom) [x0, x1, y0, y1] = [zoom.x0, zoom.x1, zoom.y0, zoom.y1];
  const log = x0 > 0 && x1 / x0 > 3;
  if (!zoom) {
    if (log) { x0 /= 1.06; x1 *= 1.06; } else { const room = 0.05 * (x1 - x0) || 0.05; x0 -= room; x1 += room; }
    const room = 0.08 * (y1 - y0) || 0.01; y0 -= room; y1 += room;
  }
  const px = x => box.left + (box.right - box.left) * (log ? Math.log(x / x0) / Math.log(x1 / x0) : (x - x0) / (x1 - x0));
  const py = y => box.bottom - (box.bottom - box.top) * (y - y0) / (y1 - y0);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const inner = document.createElementNS(SVG, "g"), inside = p => p.x >= x0 && p.x <= x1 && p.y >= y0 && p.y <= y1;
  if (zoom) {
    shape(shape(svg, "clipPath", { id: "inner" }), "rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top });
    inner.setAttribute("clip-path", "url(#inner)");
  }
  nice(y0, y1, 6).forEach(t => {
    shape(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: py(t), y2: py(t) });
    shape(svg, "text", { x: box.left - 8, y: py(t) + 4, "text-anchor": "end" }, view.tickY(t));
  });
  (log ? logarithmic(x0, x1, narrow ? 6 : 12) : nice(x0, x1, narrow ? 5 : 9)).forEach(t => {
    shape(svg, "line", { class: "grid", x1: px(t), x2: px(t), y1: box.top, y2: box.bottom });
    shape(svg, "text", { x: px(t), y: box.bottom + 18, "text-anchor": "middle" }, view.tickX(plain(t)));
  });
  shape(svg, "text", { class: "name", x: (box.left + box.right) / 2, y: height - 8, "text-anchor": "middle" }, view.nameX);
  shape(svg, "text", { class: "name", transform: `translate(14 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, view.nameY);
  if (view.limit !== null && view.limit > y0) {
    const top = py(Math.min(view.limit, y1));
    shape(svg, "rect", { class: "shade", x: box.left, y: top, width: box.right - box.left, height: box.bottom - top });
    shape(svg, "line", { class: "edge", x1: box.left, x2: box.right, y1: top, y2: top });
    shape(svg, "text", { x: box.right - 4, y: top + 15, "text-anchor": "end" }, view.limitName);
  }
  svg.append(inner);
  view.candidates.forEach(p => {
    if (!inside(p)) return;
    const dot = shape(inner, "circle", { class: "candidate", cx: px(p.x), cy: py(p.y), r: 3 });
    hint(dot, p);
  });
  const steps = envelope(view.front, view.larger);
  if (steps.length) {
    let path = `M${px(view.dense.x)} ${py(view.dense.y)}`;
    steps.forEach(p => { path += `V${py(p.y)}H${px(p.x)}`; });
    shape(inner, "path", { class: "step", d: path });
  }
  view.front.forEach(p => {
    if (p.low !== undefined) shape(inner, "path", { class: "bar", d: `M${px(p.low)} ${py(p.y) - 4}v8M${px(p.high)} ${py(p.y) - 4}v8M${px(p.low)} ${py(p.y)}H${px(p.high)}` });
  });
  const d = 8, cx = px(view.dense.x), cy = py(view.dense.y);
  hint(shape(inner, "path", { class: "dense", d: `M${cx} ${cy - d}L${cx + d} ${cy}L${cx} ${cy + d}L${cx - d} ${cy}Z` }), view.dense);
  const taken = [];
  const label = (p, text) => {
    const at = { x: px(p.x), y: py(p.y) - 12 }, wide = 7 * text.length;
    if (!inside(p) || at.y < box.top + 4 || taken.some(t => Math.abs(t.x - at.x) < (wide + t.wide) / 2 && Math.abs(t.y - at.y) < 14)) return;
    taken.push({ ...at, wide });
    shape(inner, "text", { class: "label", x: Math.min(Math.max(at.x, box.left + wide / 2), box.right - wide / 2), y: at.y, "text-anchor": "middle" }, text);
  };
  view.others.forEach(p => {
    const group = shape(inner, "g", { class: "point other" });
    shape(group, "circle", { cx: px(p.x), cy: py(p.y), r: 5 });
    hint(group, p);
    if (p.label) label(p, p.label);
  });
  const pick = view.front.map((p, index) => {
    const group = shape(inner, "g", { class: "point" + (index === view.chosen ? " chosen" : ""), tabindex: 0, role: "button", "aria-label": p.tip.replaceAll("\n", ", ") });
    shape(group, "circle", { cx: px(p.x), cy: py(p.y), r: index === view.chosen ? 8 : 5.5 });
    group.addEventListener("click", () => view.choose(index));
    group.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); view.choose(index); } });
    hint(group, p);
    return group;
  });
  const order = [view.chosen, ...view.front.keys()].filter((n, i) => n >= 0 && (i === 0 || n !== view.chosen));
  order.forEach(index => { if (view.front[index]) label(view.front[index], view.front[index].label); });
  const had = host.contains(document.activeElement) ? [...host.querySelectorAll("g.point[tabindex]")].indexOf(document.activeElement) : -1;
  const tip = document.createElement("div");
  tip.id = "tip"; tip.hidden = true;
  const frame = shape(svg, "rect", { class: "frame", visibility: "hidden" });
  let from = null;
  const where = event => { const r = svg.getBoundingClientRect(), k = width / r.width; return { x: Math.min(Math.max((event.clientX - r.left) * k, box.left), box.right), y: Math.min(Math.max((event.clientY - r.top) * k, box.top), box.bottom) }; };
  const backX = at => { const part = (at - box.left) / (box.right - box.left); return log ? x0 * (x1 / x0) ** part : x0 + part * (x1 - x0); };
  const backY = at => y0 + (box.bottom - at) / (box.bottom - box.top) * (y1 - y0);
  svg.addEventListener("pointerdown", event => { if (event.pointerType === "mouse" && event.button === 0 && !event.target.closest("g.point")) { from = where(event); event.preventDefault(); } });
  svg.addEventListener("pointermove", event => {
    if (!from) return;
    const to = where(event);
    Object.entries({ x: Math.min(from.x, to.x), y: Math.min(from.y, to.y), width: Math.abs(to.x - from.x), height: Math.abs(to.y - from.y), visibility: "visible" }).forEach(([name, value]) => frame.setAttribute(name, value));
  });
  svg.addEventListener("pointerup", event => {
    if (!from) return;
    const to = where(event), begun = from;
    from = null;
    frame.setAttribute("visibility", "hidden");
    if (Math.abs(to.x - begun.x) < 8 || Math.abs(to.y - begun.y) < 8) return;
    view.zoomTo({ x0: backX(Math.min(begun.x, to.x)), x1: backX(Math.max(begun.x, to.x)), y0: backY(Math.max(begun.y, to.y)), y1: backY(Math.min(begun.y, to.y)) });
  });
  svg.addEventListener("pointerleave", () => { from = null; frame.setAttribute("visibility", "hidden"); });
  svg.addEventListener("dblclick", () => { if (zoom) view.zoomTo(null); });
  host.replaceChildren(svg, tip);
  if (had >= 0 && pick[had]) pick[had].focus();
  function hint(target, p) {
    const show = () => {
      tip.textContent = p.tip; tip.hidden = false;
      const x = px(p.x) * host.clientWidth / width, y = py(p.y) * host.clientWidth / width;
      tip.style.left = Math.max(0, Math.min(x + 12, host.clientWidth - tip.offsetWidth - 4)) + "px";
      tip.style.top = (y + tip.offsetHeight + 24 > host.clientHeight ? y - tip.offsetHeight - 12 : y + 14) + "px";
    };
    const hide = () => { tip.hidden = true; };
    target.addEventListener("mouseenter", show); target.addEventListener("mouseleave", hide);
    target.addEventListener("focus", show); target.addEventListener("blur", hide);
  }
}
