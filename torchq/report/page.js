"use strict";
const contents = JSON.parse(document.getElementById("contents").textContent);
const $ = (id) => document.getElementById(id);
const drawn = new Map(); // Figures on the page, to be coloured again with the theme.

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) if (target.isConnected && target.lastElementChild._fullLayout) Plotly.Plots.resize(target.lastElementChild);
});

// ---- Figures ----------------------------------------------------------------------------------------------------
function themed(layout) {
  const style = getComputedStyle(document.documentElement), of = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: of("--line"), zerolinecolor: of("--line"), linecolor: of("--line"), automargin: true };
  const merged = { margin: { l: 48, r: 12, t: 8, b: 38 }, showlegend: false, ...layout, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", font: { color: of("--ink"), size: 11.5, family: "inherit" },
    hoverlabel: { bgcolor: of("--card"), font: { color: of("--ink") } }, legend: { orientation: "h", y: -0.25, ...(layout.legend || {}) } };
  for (const name of ["xaxis", "yaxis"]) {
    const own = layout[name] || {};
    merged[name] = { ...axis, ...own, title: own.title ? { text: own.title, standoff: 6 } : undefined };
  }
  return merged;
}

function draw(box, figure) {
  box.classList.add("figure");
  if (!box.querySelector("h4")) box.innerHTML = "<h4></h4><div></div>";
  box.querySelector("h4").textContent = figure.title;
  drawn.set(box, figure);
  Plotly.react(box.lastElementChild, figure.data, { ...themed(figure.layout), height: figure.height || 280 },
    { displayModeBar: false });
  resized.observe(box);
}

function drawAll(parent, figures) {
  for (const child of parent.children) drawn.delete(child);
  parent.replaceChildren();
  for (const figure of figures) { const box = document.createElement("div"); parent.append(box); draw(box, figure); }
  const block = parent.parentElement;
  if (parent.dataset.runFigures) block.hidden = !figures.length;
}

// ---- Values: Q[s, :, m] = A (prod_d F_d[s_d, :] * T[m, :]) ---------------------------------------------------------
function floats(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

function decoded(values) {
  if (!values || values.decoded) return values;
  values.decoded = true;
  for (const factor of values.factors || []) factor.rows = floats(factor.rows);
  for (const name of ["actions", "tasks", "table", "controls"]) if (values[name]) values[name] = floats(values[name]);
  return values;
}

function row(dims, place, axes) { return dims.reduce((index, d) => index * axes[d].length + place[d], 0); }

// The value and the number of the best action at a place.
function best(values, task, place) {
  const { axes, rank, num_actions: count } = values;
  let top = -Infinity, chosen = 0;
  if (!rank) {
    const all = axes.map((_, d) => d), places = axes.reduce((n, axis) => n * axis.length, 1);
    const first = (task * places + row(all, place, axes)) * count;
    if (values.controls) return [values.table[first], values.controls[first]];
    for (let a = 0; a < count; a++) if (values.table[first + a] > top) { top = values.table[first + a]; chosen = a; }
    return [top, chosen];
  }
  const weights = values.tasks.slice(task * rank, (task + 1) * rank);
  for (const factor of values.factors) {
    const first = row(factor.dims, place, axes) * rank;
    for (let k = 0; k < rank; k++) weights[k] *= factor.rows[first + k];
  }
  const active = values.active[task];
  for (let a = 0; a < count; a++) {
    let q = 0;
    for (const k of active) q += values.actions[a * rank + k] * weights[k];
    if (q > top) { top = q; chosen = a; }
  }
  return [top, chosen];
}

function prepare(values) {
  if (!values.rank || values.active) return;
  values.active = [];
  for (let first = 0; first < values.tasks.length; first += values.rank) {
    values.active.push([...Array(values.rank).keys()].filter((k) => values.tasks[first + k] !== 0));
  }
}

function maps(run, task, across, up, place) {
  const values = run.values, x = values.axes[across], y = values.axes[up], value = [], action = [];
  for (let j = 0; j < y.length; j++) {
    value.push([]); action.push([]);
    for (let i = 0; i < x.length; i++) {
      const here = [...place]; here[up] = j; here[across] = i;
      const [v, a] = best(values, task, here);
      value[j].push(v); action[j].push(a);
    }
  }
  return [value, action];
}

// ---- What was learnt ----------------------------------------------------------------------------------------------
const chosen = { run: 0, task: 0, across: 0, up: 1, place: [] };

function options(select, names, index) {
  select.replaceChildren(...names.map((name, number) => new Option(name, number, false, number === index)));
}

// The learnt episode and the optimal one of the task chosen, where they were played.
function played(run) {
  const number = (run.played || []).indexOf(chosen.task);
  return number < 0 ? {} : { learnt: run.episodes[number], optimal: (run.optimal || contents.optimal || [])[number] };
}

function episodePath(run) {
  const episode = played(run);
  return [["optimal", "#111111", "dot"], ["learnt", "#ff4d94", "solid"]].filter(([kind]) => episode[kind]).map(([kind, color, dash]) => {
    const seen = episode[kind].observations, x = [...seen[chosen.across]], y = [...seen[chosen.up]];
    const wide = (axis) => (axis[axis.length - 1] - axis[0]) / 2;
    for (let i = x.length - 1; i > 0; i--) { // No line across the page where an angle begins again.
      if (Math.abs(seen[chosen.across][i] - seen[chosen.across][i - 1]) > wide(run.values.axes[chosen.across])
        || Math.abs(seen[chosen.up][i] - seen[chosen.up][i - 1]) > wide(run.values.axes[chosen.up])) { x.splice(i, 0, null); y.splice(i, 0, null); }
    }
    return { x, y, mode: "lines", name: kind, line: { color, width: 2, dash }, hoverinfo: "name" };
  });
}

function drawValues() {
  const run = contents.runs[chosen.run], values = decoded(run.values);
  $("values").hidden = !values;
  if (!values) return;
  prepare(values);
  const flat = values.axes.length < 2, up = flat ? chosen.across : chosen.up;
  const [value, action] = maps(run, chosen.task, chosen.across, up, chosen.place);
  const x = values.axes[chosen.across], y = flat ? [0] : values.axes[up], only = (table) => (flat ? [table.map((_, i) => table[i][i])] : table);
  const layout = { xaxis: { title: run.dimensions[chosen.across], range: [x[0], x[x.length - 1]] },
    yaxis: { title: flat ? "" : run.dimensions[up], range: flat ? undefined : [y[0], y[y.length - 1]] } };
  const names = run.actions, ticks = names.map((_, n) => n), few = names.length <= 12;
  draw($("value-map"), { title: "max Q: the value of acting greedily", layout: { ...layout, showlegend: !flat && Boolean(played(run).learnt), legend: { y: -0.2 } }, height: 360, data: [{ type: "heatmap", x, y, z: only(value),
    colorscale: "Viridis", colorbar: { thickness: 10 } }, ...(flat ? [] : episodePath(run))] });
  const discrete = { zmin: 0, zmax: names.length - 1, customdata: only(action).map((line) => line.map((a) => names[a])), hovertemplate: "%{customdata}<extra></extra>" };
  draw($("policy-map"), { title: names.length ? "the greedy action" : "the control", layout, height: 360, data: [{ type: "heatmap", x, y, z: only(action),
    colorscale: "Cividis", colorbar: { thickness: 10, ...(names.length && few ? { tickvals: ticks, ticktext: names } : {}) }, ...(names.length ? discrete : {}) }] });
}

function drawSliders() {
  const run = contents.runs[chosen.run], axes = run.values ? run.values.axes : [];
  const rest = axes.map((_, d) => d).filter((d) => d !== chosen.across && d !== chosen.up);
  $("sliders").replaceChildren(...rest.map((d) => {
    const label = document.createElement("label"), slider = document.createElement("input"), output = document.createElement("output");
    Object.assign(slider, { type: "range", min: 0, max: axes[d].length - 1, value: chosen.place[d] });
    const step = Math.abs(axes[d][1] - axes[d][0]) || 1, said = (x) => (Math.abs(x) < step / 1e6 ? 0 : Number(x.toPrecision(3)));
    const say = () => { output.textContent = " " + said(axes[d][chosen.place[d]]); };
    slider.addEventListener("input", () => { chosen.place[d] = Number(slider.value); say(); drawValues(); });
    label.append(run.dimensions[d] + " ", slider, output); say();
    return label;
  }));
}

function minus(number) { return String(number).replace("-", "−"); }

function drawEpisode() {
  const run = contents.runs[chosen.run], { learnt, optimal } = played(run);
  $("episodes").hidden = !learnt;
  if (!learnt) return;
  $("episode-words").textContent = `Return ${minus(learnt.return)}, the line` + (optimal ? `; that of ${run.best || "an optimal policy"} from the same start, with the same noise, ${minus(optimal.return)}, dashed.` : ".");
  const trace = (one, y, color, name, dash, shape) => ({ x: one.steps.slice(0, y.length), y, mode: "lines", name, line: { color, dash, width: 2, shape } });
  const both = (of, shape) => [optimal && trace(optimal, of(optimal), "#888888", "optimal", "dash", shape), trace(learnt, of(learnt), contents.colours[chosen.run], "learnt", "solid", shape)].filter(Boolean);
  const named = run.actions.length && run.actions.length <= 12 ? { tickvals: run.actions.map((_, n) => n), ticktext: run.actions } : {};
  const figures = run.dimensions.map((name, d) => ({ title: name, data: both((one) => one.observations[d]), layout: { xaxis: { title: "step" } }, height: 210 }));
  figures.push({ title: run.actions.length ? "action" : "control", data: both((one) => one.actions, run.actions.length ? "hv" : "linear"), layout: { xaxis: { title: "step" }, yaxis: named }, height: 210 });
  drawAll($("episode-figures"), figures);
}

function drawMap() {
  const run = contents.runs[chosen.run], map = run.map;
  $("map").hidden = !map;
  if (!map) return;
  const x = map.parameters[$("map-across").value], y = map.parameters[$("map-up").value], z = map.colours[$("map-colour").value];
  draw($("task-map"), { title: map.names[$("map-colour").value], height: 380, layout: { xaxis: { title: map.axes[$("map-across").value], type: map.types[$("map-across").value] },
    yaxis: { title: map.axes[$("map-up").value], type: map.types[$("map-up").value] } },
    data: [{ type: x.length > 2000 ? "scattergl" : "scatter", mode: "markers", x, y, text: map.tasks, hovertemplate: "%{text}<br>%{marker.color}<extra></extra>",
      marker: { color: z, colorscale: "Viridis", showscale: true, size: x.length > 500 ? 4 : 9, colorbar: { thickness: 10 } } }] });
}

function chooseRun() {
  const run = contents.runs[chosen.run], axes = run.values ? run.values.axes : [];
  $("run-notes").textContent = (run.index === undefined ? "" : `seed ${run.index}; `) + run.notes.join("; ");
  chosen.task = Math.min(chosen.task, Math.max(0, run.tasks.length - 1));
  const wide = axes.map((axis, d) => d).sort((a, b) => axes[b].length - axes[a].length || a - b).slice(0, 2).sort((a, b) => a - b);
  [chosen.across, chosen.up] = [wide[0] || 0, wide[1] || 0];
  chosen.place = axes.map((axis) => Math.floor(axis.length / 2));
  options($("task"), run.tasks, chosen.task);
  for (const name of ["across", "up"]) options($(name), run.dimensions || [], chosen[name]);
  if (run.map) {
    options($("map-across"), run.map.axes, 0); options($("map-up"), run.map.axes, Math.min(1, run.map.axes.length - 1));
    options($("map-colour"), run.map.names, 0);
  }
  for (const parent of document.querySelectorAll("[data-run-figures]")) drawAll(parent, run[parent.dataset.runFigures] || []);
  drawSliders(); drawValues(); drawEpisode(); drawMap();
}

// ---- The page -------------------------------------------------------------------------------------------------------
for (const parent of document.querySelectorAll("[data-figures]")) drawAll(parent, contents.figures[parent.dataset.figures] || []);
if (contents.runs.length) {
  options($("run"), contents.labels, 0);
  $("run").addEventListener("change", () => { chosen.run = Number($("run").value); chooseRun(); });
  $("task").addEventListener("change", () => { chosen.task = Number($("task").value); drawValues(); drawEpisode(); });
  for (const name of ["across", "up"]) {
    $(name).addEventListener("change", () => { chosen[name] = Number($(name).value); drawSliders(); drawValues(); });
  }
  for (const name of ["map-across", "map-up", "map-colour"]) $(name).addEventListener("change", drawMap);
  chooseRun();
}
function recolour() { for (const [box, figure] of drawn) draw(box, figure); }
$("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = getComputedStyle(root).colorScheme.includes("dark");
  root.dataset.theme = dark ? "light" : "dark";
  recolour();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
if (["#light", "#dark"].includes(location.hash)) { document.documentElement.dataset.theme = location.hash.slice(1); recolour(); }
document.documentElement.dataset.ready = "yes"; // For tests: everything is drawn.
