"use strict";
// Plots, and what all scripts share. A figure is Plotly's; `meta` of its traces names their jobs.

const data = JSON.parse(document.getElementById("data").textContent);
const figures = JSON.parse(document.getElementById("plots").textContent);
const narrow = matchMedia("(max-width: 40rem)");
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Indices of the jobs that the filter shows. */
let shown = new Set(data.jobs.keys());
/** Called when the filter has changed. */
const listeners = [];

const element = (name, properties = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties))
    if (key.includes("-") || ["role", "for", "colspan"].includes(key)) made.setAttribute(key, value);
    else made[key] = value;
  made.append(...children);
  return made;
};

const button = (text, act, label = text) => {
  const made = element("button", { type: "button", className: "small", "aria-label": label }, text);
  made.addEventListener("click", act);
  return made;
};

/** Name of a job with its marker. */
const tag = (job, text = job.label) => {
  const glyph = element("span", { className: "glyph", "aria-hidden": "true" }, job.glyph);
  glyph.style.color = job.colour;
  return element("span", { className: "tag" }, glyph, text);
};

const jobLink = (job, text) =>
  element("a", { href: `#job=${encodeURIComponent(data.jobs[job].name)}` }, tag(data.jobs[job], text));

/** For Plotly, which interprets a few HTML tags in its texts. */
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const plain = (text) =>
  new DOMParser().parseFromString(text.replaceAll("<br>", " "), "text/html").body.textContent.trim();

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const merged = (first, second) => {
  const both = { ...first };
  for (const [key, value] of Object.entries(second))
    both[key] = isObject(value) && isObject(both[key]) ? merged(both[key], value) : value;
  return both;
};

// Saving

const saveCsv = (title, [header, ...rows]) => {
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    // A spreadsheet would take a text that begins like this for a formula.
    if (/^[=+\-@\t\r]/.test(text) && isNaN(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const text = [header, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  const link = element("a", { href: url, download: `${fileName(title)}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
};

const fileName = (title) =>
  `${document.title.split(" · ")[0]} ${title}`.replace(/[^\p{L}\p{N}.=-]+/gu, "_").slice(0, 120);

// Drawing

/** A mean is shown while one of its jobs is. */
const shows = (of) => of === null || [of].flat().some((job) => shown.has(job));

/** The trace without the points of hidden jobs; null if nothing is left. */
const filtered = (trace) => {
  const { points, jobs } = trace.meta ?? {};
  if (jobs && !shows(jobs)) return null;
  if (!points) return trace;
  const texted = trace.text || !trace.hovertemplate?.includes("%{text}") ? trace
    : { ...trace, text: points.map((job) => (job === null ? "" : escaped(data.jobs[job].label))) };
  if (points.every(shows)) return texted;
  const kept = points.flatMap((of, at) => (shows(of) ? [at] : []));
  if (kept.every((at) => points[at] === null)) return null;
  const pick = (value) => {
    if (Array.isArray(value) && value.length === points.length) return kept.map((at) => value[at]);
    return isObject(value) ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, pick(inner)])) : value;
  };
  return pick(texted);
};

/** Colours that Plotly cannot take from the style sheet, as a layout. */
const theme = (of) => {
  const style = getComputedStyle(of);
  const value = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: value("--line"), zerolinecolor: value("--muted"), linecolor: value("--line"),
    tickcolor: value("--line"), color: value("--muted") };
  return {
    paper_bgcolor: value(of.closest(".card") ? "--panel" : "--page"), font: { color: value("--ink"), family: getComputedStyle(document.body).fontFamily },
    hoverlabel: { bgcolor: value("--panel"), bordercolor: value("--line"), font: { color: value("--ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: value("--muted"), activecolor: value("--accent") },
    xaxis: axis, yaxis: axis,
  };
};

/** By box: the figure, or a function that makes it; and what was drawn last. */
const sources = new Map(), drawn = new Map(), inView = new Set();

const figureOf = (box) => {
  const source = sources.get(box);
  const { data: traces, layout } = typeof source === "function" ? source(box) : source;
  return { data: traces.map(filtered).filter(Boolean), layout };
};

/** The numbers that a box draws: a header, then rows. */
const rowsOf = (box) => {
  const { data: traces, layout } = figureOf(box);
  if (layout.meta?.rows) return layout.meta.rows();
  const tables = traces.flatMap((trace) => (trace.meta?.table ? [trace.meta.table] : []));
  if (tables.length) return tables[0];
  const title = (side, otherwise) => plain(layout[`${side}axis`]?.title?.text ?? "").replace(/\s*\(?[←↑→↓].*$/, "") || otherwise;
  const sides = ["x", "y"].filter((side) => traces.some((trace) => trace[`error_${side}`]?.array));
  const header = ["series", "job", title("x", "step"), title("y", "loss, nats per token"),
    ...sides.flatMap((side) => [`${side} low`, `${side} high`])];
  const rows = traces.flatMap((trace) => trace.x.flatMap((x, at) => {
    const value = { x, y: trace.y[at] };
    if (x === null || value.y === null) return [];
    const jobs = [trace.meta?.points?.[at] ?? trace.meta?.jobs ?? []].flat();
    const bounds = sides.flatMap((side) => {
      const { array, arrayminus } = trace[`error_${side}`] ?? {};
      return array?.[at] || arrayminus?.[at] ? [value[side] - arrayminus[at], value[side] + array[at]] : [null, null];
    });
    return [[plain(trace.name ?? ""), jobs.map((job) => data.jobs[job].label).join("; "), x, value.y, ...bounds]];
  }));
  return [header, ...rows];
};

// The same object for every drawing: Plotly makes a plot anew when its configuration changes.
const CONFIG = {
  responsive: true, displaylogo: false, doubleClick: "reset",
  toImageButtonOptions: { scale: 2, filename: fileName("plot") },
  modeBarButtons: [["toImage", {
    name: "csv", title: "Save the numbers as CSV", click: (box) => saveCsv(box.dataset.title, rowsOf(box)),
    icon: { width: 24, height: 24, path: "M3 3h18v18h-18zM5 9v4h6v-4zM13 9v4h6v-4zM5 15v4h6v-4zM13 15v4h6v-4z" },
  }]],
};

// Plotly is half of the page: it is compiled after the tables can be read.
const library = element("script", { src: URL.createObjectURL(new Blob([document.getElementById("plotly").textContent])) });
library.addEventListener("load", () => redraw());
addEventListener("load", () => document.head.append(library));

const draw = (box, of) => {
  const figure = figureOf(box);
  drawn.set(box, figure);
  if (!window.Plotly) return;
  const layout = merged(figure.layout, theme(of ?? box));
  if (narrow.matches) {
    layout.dragmode = false; // A finger that scrolls the page must not zoom.
    layout.showlegend = figure.data.length < 5 && layout.showlegend !== false;
    for (const side of ["xaxis", "yaxis"])
      if (layout[side].title?.text)
        layout[side].title = { ...layout[side].title, text: layout[side].title.text.replace(/\s*\([^)]*[←↑→↓][^)]*\)$/, "") };
  }
  if (layout.height) box.style.height = `${layout.height}px`;
  else layout.height = box.clientHeight || 300;
  Plotly.react(box, figure.data, layout, CONFIG);
  if (box.dataset.listens) return;
  box.dataset.listens = "true";
  box.on("plotly_click", ({ points: [{ data: { meta }, pointIndex }] }) => {
    const jobs = [meta?.points?.[pointIndex] ?? meta?.jobs ?? []].flat();
    if (jobs.length && !meta.table) showJob(jobs[0]);
  });
};

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) inView.delete(target);
    else if (inView.add(target) && !drawn.has(target)) draw(target);
  }
}, { rootMargin: "400px" });

/** Draws everything again; what is out of view, when it comes into view. */
const redraw = () => {
  drawn.clear();
  for (const box of inView) if (box.isConnected) draw(box);
};

/** Draws a figure in a box, once it is in view. */
const plot = (box, source, title) => {
  sources.set(box, source);
  drawn.delete(box);
  box.dataset.title = title;
  box.setAttribute("role", "figure");
  box.setAttribute("aria-label", `Plot: ${title}`);
  watcher.observe(box);
  if (inView.has(box)) draw(box);
};

/** Before the boxes in an element are removed. */
const forget = (root) => {
  for (const box of root.querySelectorAll(".plot")) {
    watcher.unobserve(box);
    for (const known of [sources, drawn, inView]) known.delete(box);
    if (box.dataset.listens) Plotly.purge(box);
  }
};

dark.addEventListener("change", redraw);
narrow.addEventListener("change", redraw);
// On paper everything is light and drawn.
addEventListener("beforeprint", () => {
  for (const box of sources.keys()) if (box.offsetParent) draw(box, document.querySelector(".light"));
});
addEventListener("afterprint", redraw);
