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
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  made.append(...children);
  return made;
};

const button = (text, act) => {
  const made = element("button", { type: "button", className: "small" }, text);
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

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const merged = (first, second) => {
  const both = { ...first };
  for (const [key, value] of Object.entries(second))
    both[key] = isObject(value) && isObject(both[key]) ? merged(both[key], value) : value;
  return both;
};

/** A mean is shown while one of its jobs is. */
const shows = (of) => of === null || [of].flat().some((job) => shown.has(job));

/** The trace without the points of hidden jobs; null if nothing is left. */
const filtered = (trace) => {
  const { points } = trace.meta ?? {};
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

/** What all plots have in common, in colours of the style sheet. */
const common = () => {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  const axis = { automargin: true, gridcolor: value("--line"), zerolinecolor: value("--muted"), linecolor: value("--line"),
    tickcolor: value("--line"), color: value("--muted"), title: { font: { size: 12 } } };
  return {
    paper_bgcolor: value("--page"), plot_bgcolor: "rgba(0,0,0,0)",
    font: { size: 12, color: value("--ink"), family: getComputedStyle(document.body).fontFamily },
    hovermode: "closest", hoverlabel: { align: "left", bgcolor: value("--panel"), bordercolor: value("--line"), font: { color: value("--ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: value("--muted"), activecolor: value("--accent") },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    dragmode: narrow.matches ? false : "zoom", // A finger that scrolls the page must not zoom.
    xaxis: axis, yaxis: axis,
  };
};

/** By box: the figure, or a function that makes it; and what was drawn last. */
const sources = new Map(), drawn = new Map(), inView = new Set();

const figureOf = (box) => {
  const source = sources.get(box);
  const { data: traces, layout } = typeof source === "function" ? source() : source;
  return { data: traces.map(filtered).filter(Boolean), layout };
};

// The same object for every drawing: Plotly makes a plot anew when its configuration changes.
const CONFIG = {
  responsive: true, displaylogo: false, doubleClick: "reset", modeBarButtons: [["toImage"]],
  toImageButtonOptions: { scale: 2, filename: document.title.split(" · ")[0] },
};

// Plotly is half of the page: it is compiled after the tables can be read.
const library = element("script", { src: URL.createObjectURL(new Blob([document.getElementById("plotly").textContent])) });
library.addEventListener("load", () => redraw());
addEventListener("load", () => document.head.append(library));

const draw = (box) => {
  const figure = figureOf(box);
  drawn.set(box, figure);
  if (!window.Plotly) return;
  const layout = merged(common(), figure.layout);
  if (narrow.matches && figure.data.length > 4) layout.showlegend = false;
  layout.height = box.clientHeight || 300;
  Plotly.react(box, figure.data, layout, CONFIG);
  if (box.dataset.listens) return;
  box.dataset.listens = "true";
  box.on("plotly_click", ({ points: [{ data: { meta }, pointIndex }] }) => {
    const jobs = [meta?.points?.[pointIndex] ?? []].flat();
    if (jobs.length) showJob(jobs[0]);
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
// On paper all plots are drawn, in the width of a sheet.
for (const [event, isPrinting] of [["beforeprint", true], ["afterprint", false]])
  addEventListener(event, () => {
    document.body.classList.toggle("printing", isPrinting);
    for (const box of isPrinting ? sources.keys() : []) inView.add(box);
    redraw();
  });
