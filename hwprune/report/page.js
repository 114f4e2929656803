const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
function element(kind, text, className) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function fill(id, header, rows, words) {
  const table = find(id);
  table.replaceChildren();
  if (header.length) {
    const row = table.createTHead().insertRow();
    header.forEach((text, i) => { const cell = element("th", text, words.includes(i) ? "words" : ""); cell.scope = "col"; row.append(cell); });
  }
  const body = table.createTBody();
  if (!rows.length) { body.insertRow().append(element("td", "none")); return body; }
  rows.forEach(cells => {
    const row = body.insertRow();
    cells.forEach((cell, i) => {
      const box = element("td", undefined, words.includes(i) ? "words" : "");
      box.append(cell instanceof Node ? cell : document.createTextNode(cell));
      row.append(box);
    });
  });
  return body;
}
function sortable(id, header, rows, words) {
  fill(id, header, rows.map(row => row.map(cell => cell.text)), words);
  const table = find(id), heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => {
    const button = element("button", header[column]);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0], lines = [...body.rows];
      const order = rows.map((row, i) => ({ key: row[column].key, line: i })).sort((a, b) => {
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);  // what has no number comes last
        const sign = a.key < b.key ? -1 : a.key > b.key ? 1 : 0;
        return down ? -sign : sign;
      });
      const now = order.map(one => rows[one.line]);
      rows.splice(0, rows.length, ...now);
      body.replaceChildren(...order.map(one => lines[one.line]));
    });
  });
}
find("verdict").textContent = data.verdict;
data.wrong.forEach(text => find("wrong").append(element("p", text, "wrong")));
data.notes.forEach(text => find("notes").append(element("p", text)));
find("notes-title").textContent = data.notes.length === 1 ? "1 note" : data.notes.length + " notes";
if (!data.notes.length) find("notes-part").remove();

let chosen = data.chosen, compared = -1, layer = null, zoom = null;
const option = name => document.querySelector("input[name=" + name + "]:checked").value;
function hero(point) {
  find("hero-speedup").textContent = point.hero.speedup;
  find("hero-speedup-note").textContent = point.hero.speedup_note;
  find("hero-metric-name").textContent = data.metric + ", " + point.split + " split";
  find("hero-metric").textContent = point.hero.metric;
  find("hero-metric-note").textContent = point.hero.metric_note;
  find("hero-size").textContent = point.hero.size;
  find("hero-size-note").textContent = point.hero.size_note;
  find("hero-which").textContent = "Trial " + point.trial + point.trained + (chosen === data.chosen ? ": " + data.why : "") + ". Files to deploy:";
  find("command").textContent = point.command;
}
find("copy").addEventListener("click", async () => {
  const text = find("command").textContent;
  try { await navigator.clipboard.writeText(text); } catch {  // a page from a file may not be allowed to
    const range = document.createRange();
    range.selectNodeContents(find("command"));
    getSelection().removeAllRanges(); getSelection().addRange(range);
    document.execCommand("copy");
  }
  find("copy").textContent = "Copied";
  setTimeout(() => { find("copy").textContent = "Copy"; }, 1500);
});
function choose(index) {
  chosen = index;
  if (compared === chosen) compared = -1;
  const point = data.front[index], other = compared >= 0 ? data.front[compared] : null;
  hero(point);
  [...document.querySelectorAll("#front tbody tr")].forEach((row, i) => {
    row.classList.toggle("chosen", i === index + 1);
    const button = row.querySelector("button");
    if (button) button.setAttribute("aria-pressed", String(i === index + 1));
  });
  find("recipe-title").textContent = "Trial " + point.trial + point.trained;
  const link = element("a");
  link.href = point.model;
  link.append(element("code", point.model));
  find("recipe-text").replaceChildren(
    document.createTextNode(point.speedup + ", drop " + point.drop + ". Compensation: " + point.compensation + ". Files: "), link, document.createTextNode(" "), element("code", point.recipe));
  const select = find("compare");
  select.replaceChildren(...[-1, ...data.front.keys()].filter(i => i !== index).map(i => {
    const made = element("option", i < 0 ? "nothing" : "trial " + data.front[i].trial + data.front[i].trained + ", " + data.front[i].speedup);
    made.value = i; made.selected = i === compared;
    return made;
  }));
  find("compare-part").hidden = data.front.length < 2;
  const steps = other ? [...point.chain, ...other.chain.slice(1)] : point.chain;
  fill("chain", ["step", "", "speedup", data.metric, "file"], steps, []);
  const points = other ? [point, other] : [point];
  network(points);
  const most = Math.max(1e-9, ...points.flatMap(p => p.times.map(row => Math.max(row[1], row[2]))));
  find("times-part").hidden = !point.times.length;
  const theirs = other ? Object.fromEntries(other.times.map(row => [row[0], row[2]])) : {};
  fill("times", ["layer", "dense, us", "here, us", "", "saved, us", ...(other ? ["trial " + other.trial + ", us"] : [])], point.times.map(([name, before, here]) => {
    const bars = element("span", undefined, "bar two"), top = element("i", undefined, "before"), below = element("i");
    top.style.width = 100 * before / most + "%"; below.style.width = 100 * here / most + "%";
    bars.append(top, below);
    return [name, before.toFixed(1), here ? here.toFixed(1) : "gone", bars, (before - here).toFixed(1), ...(other ? [theirs[name] ? theirs[name].toFixed(1) : "gone"] : [])];
  }), []);
  fill("recipe", ["what", "role", "kept", "", ...(other ? ["trial " + other.trial] : []), "pattern", "criterion", "remark"], point.layers.map((row, i) => {
    const bar = element("span", undefined, "bar"), inner = element("i");
    inner.style.width = 100 * row.share + "%";
    bar.append(inner);
    const name = element("span", row.label);
    name.title = row.unit;
    return [name, row.role, row.kept, bar, ...(other ? [other.layers[i].kept] : []), row.pattern, row.method, row.why];
  }), [other ? 7 : 6]);
  find("kernels-part").hidden = !point.kernels.length;
  fill("kernels", [], point.kernels, [0, 1]);
  draw();
}
find("compare").addEventListener("change", event => { compared = Number(event.target.value); choose(chosen); });

// The network: each layer as wide as its time, coloured by what is kept of it.
const shareOf = (point, name) => { const row = point.layers.find(r => r.layer === name && r.role !== "branch"); return row ? row.share : null; };
function network(points) {
  const before = points[0].times, total = before.reduce((sum, row) => sum + row[1], 0);
  find("network-part").hidden = !total;
  if (!total) return;
  const row = (caption, times, share) => {
    const line = element("div", undefined, "row"), here = times.reduce((sum, one) => sum + one[1], 0);
    line.style.width = Math.min(100, 100 * here / total) + "%";
    times.filter(([, us]) => us > 0).forEach(([name, us]) => {
      const box = element("button"), kept = share(name);
      box.type = "button";
      box.style.flexGrow = us;
      box.style.background = kept === null ? "var(--grey)" : `color-mix(in srgb, var(--kept) ${Math.round(100 * kept)}%, var(--little))`;
      box.title = name + ": " + us.toFixed(1) + " us" + (kept === null ? "" : ", " + Math.round(100 * kept) + " % kept");
      box.setAttribute("aria-label", box.title);
      box.classList.toggle("chosen", name === layer);
      box.addEventListener("click", () => { layer = name; network(points); });
      line.append(box);
    });
    return [element("div", caption + ", " + (here >= 1000 ? (here / 1000).toFixed(2) + " ms" : here.toPrecision(3) + " us"), "caption"), line];
  };
  find("network").replaceChildren(
    ...row("dense", before.map(([name, us]) => [name, us]), () => 1),
    ...points.flatMap(p => row("trial " + p.trial, p.times.map(([name, , us]) => [name, us]), name => shareOf(p, name))));
  find("layer-title").textContent = layer === null ? "" : "What each point of the front keeps of " + layer + ":";
  const rows = layer === null ? [] : data.front.map(p => {
    const time = p.times.find(one => one[0] === layer), own = p.layers.filter(r => r.layer === layer);
    return ["trial " + p.trial + p.trained, p.speedup, own.map(r => r.kept + " " + r.role).join(", ") || "follows its neighbours", own.map(r => r.method).filter(Boolean).join(", "), time ? (time[2] ? time[2].toFixed(1) : "gone") : ""];
  });
  if (rows.length) fill("layer", ["", "speedup", "kept", "criterion", "us"], rows, []); else find("layer").replaceChildren();
}

const shownY = value => data.percent ? (100 * value).toFixed(1) + " %" : String(Number(value.toPrecision(4)));
function draw() {
  const across = option("across"), split = option("split"), final = split === "final";
  const at = (own, size) => across === "mb" ? size : across === "ms" ? own.ms : own.x;
  const up = data.higher ? 1 : -1;
  const dense = final ? data.dense.final : data.dense.searched;
  const point = p => {
    const own = final ? p : p.searched;
    return { x: at(own, p.mb), y: up * own.score, low: final && across === "x" ? p.low : undefined, high: final && across === "x" ? p.high : undefined,
      label: own.x.toFixed(2) + "x", tip: final ? p.tip : p.searched.tip };
  };
  const candidates = final ? [] : data.trials.map(t => ({ x: t[across], y: up * t.score, tip: t.tip, inside: t.inside }));
  const limit = data.max_drop === null ? null : up * dense - data.max_drop;
  find("whole").hidden = zoom === null;
  drawChart(find("chart"), {
    zoom, zoomTo: wanted => { zoom = wanted; draw(); },
    front: data.front.map(point), candidates, chosen, choose, limit, larger: across === "x", limitName: "beyond the limit on the drop",
    others: data.quantised.map(p => ({ ...point(p), label: p.reference ? p.precision : "" })),
    dense: { x: across === "x" ? 1 : across === "ms" ? data.dense.latency_ms : data.dense.size_mb, y: up * dense, tip: "dense\n" + data.metric + " " + shownY(dense) + "\n" + data.dense.latency },
    nameX: { x: data.word + " speedup over dense", ms: "latency of a batch, ms", mb: "file, MB" }[across],
    nameY: data.metric + " on " + (final ? data.split : "validation") + (data.higher ? "" : " (up is better)"),
    tickX: text => across === "x" ? text + "x" : text, tickY: value => shownY(up * value),
  });
  const entry = (name, kind) => { const made = element("span"); made.append(element("i", undefined, kind), document.createTextNode(name)); return made; };
  find("legend").replaceChildren(
    entry(final ? "front, " + data.how : "the same candidates, as the search saw them", "front"), ...(candidates.length ? [entry("other candidates", "candidate")] : []), entry("dense", "dense"),
    ...(data.quantised.length ? [entry("quantised", "other")] : []), ...(limit === null ? [] : [entry("outside --max-drop", "limit")]));
  find("explained").textContent = final ? data.legend : "Scores and speedups of the search, on the validation split. The front was chosen by them and by a second measurement, so here it looks better than it is.";
}
const names = ["", "speedup", "drop", data.metric, "95 % interval", "latency", "parameters", "MACs", "file"];
const rows = [["dense", "1.00x", "", data.dense.metric, data.dense.interval, data.dense.latency, data.dense.params, data.dense.macs, data.dense.size]];
data.front.forEach((p, i) => {
  const button = element("button", "trial " + p.trial + p.trained);
  button.type = "button";
  button.addEventListener("click", event => { event.stopPropagation(); choose(i); });
  rows.push([button, p.speedup, p.drop, p.metric, p.interval, p.latency, p.params, p.macs, p.size]);
});
const body = fill("front", names, rows, []);
[...body.rows].forEach((row, i) => { if (i > 0) { row.classList.add("pick"); row.addEventListener("click", () => choose(i - 1)); } });
const part = (id, rows, header) => { if (rows.length) fill(id, header, rows, []); else find(id + "-part").remove(); };
part("training", data.training, ["trained", "from", "training", "speedup", "drop before", "drop after", "validation", "cost"]);
if (data.cascade) {
  find("cascade-told").textContent = data.cascade.told;
  fill("cascade", data.cascade.table[0], data.cascade.table.slice(1), [0]);
  const picture = element("img");
  picture.src = data.cascade.picture;
  picture.alt = "The drop against the mean latency of each model and of the pair, and how long inputs take";
  picture.style.maxWidth = "100%";
  find("cascade-picture").append(picture);
} else find("cascade-part").remove();
part("precision", data.precision, ["", "precision", "made of", "speedup", "drop", "file", "quantised"]);
part("targets", data.targets, ["speedup by target", ...data.target_names]);
if (data.targets.length) find("targets-agree").textContent = data.targets_agree;
fill("kinds", ["proposed by", "trials", "on the search's front"], data.kinds, []);
if (!data.kinds.length) find("history-part").remove();
sortable("candidates", ["trial", "proposed by", "result", "speedup", "drop", data.metric, "file", "cut"], data.candidates, [2]);
fill("left", ["what", "why"], data.left_out, [0, 1]);
fill("failures", ["trial", "stage", "reason"], data.failures, [2]);
fill("quality", [], data.quality, [0, 1]);
fill("environment", [], data.environment, [0, 1]);
find("final-name").textContent = data.split + " split, " + data.how;
document.querySelectorAll("fieldset input").forEach(input => input.addEventListener("change", () => { zoom = null; draw(); }));
find("whole").addEventListener("click", () => { zoom = null; draw(); });
if (chosen >= 0) choose(chosen); else {
  ["recipe-title", "recipe-part", "hero-part"].forEach(id => find(id).remove());
  document.querySelector("input[value=searched]").checked = true;
  draw();
}
let width = find("chart").clientWidth;
new ResizeObserver(() => { const now = find("chart").clientWidth; if (now !== width) { width = now; draw(); } }).observe(find("chart"));
addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach(part => { part.open = true; }); });
