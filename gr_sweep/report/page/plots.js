"use strict";
// Plots: drawn when they come into view, in the page's colours, without what the filter hides; saved
// as pictures and as numbers. A figure is Plotly's, with the jobs of its traces in their `meta`.

const data = JSON.parse(document.getElementById("data").textContent);
const figures = JSON.parse(document.getElementById("plots").textContent);
const narrow = matchMedia("(max-width: 40rem)");
const dark = matchMedia("(prefers-color-scheme: dark)");

/** The jobs that the filter shows, by number. */
let shown = new Set(data.jobs.keys());

const element = (name, properties = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties))
    if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  made.append(...children);
  return made;
};

/** A job's or group's name with its marker. */
const tag = (job, text = job.label) => {
  const glyph = element("span", { className: "glyph", "aria-hidden": "true" }, job.glyph);
  glyph.style.color = job.colour;
  return element("span", { className: "tag" }, glyph, text);
};

/** For Plotly, whose texts know a few elements of HTML. */
const escaped = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

const merged = (first, second) => {
  const both = { ...first };
  for (const [key, value] of Object.entries(second))
    both[key] = isObject(value) && isObject(both[key]) ? merged(both[key], value) : value;
  return both;
};

/** What Plotly cannot take from CSS, as a layout. */
const theme = (of = document.documentElement) => {
  const style = getComputedStyle(of);
  const value = (name) => style.getPropertyValue(name).trim();
  const axis = {
    gridcolor: value("--line"), zerolinecolor: value("--muted"), linecolor: value("--line"),
    tickcolor: value("--line"), color: value("--muted"),
  };
  return {
    font: { color: value("--ink"), family: getComputedStyle(document.body).fontFamily },
    hoverlabel: {
      bgcolor: value("--panel"), bordercolor: value("--line"), font: { color: value("--ink") },
    },
    xaxis: axis, yaxis: axis,
  };
};

/** What several jobs make, a mean say, is there while one of them is. */
const shows = (of) => of === null || [of].flat().some((job) => shown.has(job));

/** The trace without the points of hidden jobs; null where nothing is left. */
const filtered = (trace) => {
  const { points, jobs } = trace.meta ?? {};
  if (jobs && !shows(jobs)) return null;
  if (!points) return trace;
  const texted = trace.text || !trace.hovertemplate?.includes("%{text}")
    ? trace
    : { ...trace, text: points.map((job) => (job === null ? "" : escaped(data.jobs[job].label))) };
  if (points.every(shows)) return texted;
  const kept = points.flatMap((of, at) => (shows(of) ? [at] : []));
  if (kept.every((at) => points[at] === null)) return null;
  const pick = (value) => {
    if (Array.isArray(value) && value.length === points.length) return kept.map((at) => value[at]);
    if (isObject(value))
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, pick(inner)]));
    return value;
  };
  return pick(texted);
};

/** What each box draws: a figure, or a function that makes it. */
const sources = new Map();
const drawn = new Map();
const inView = new Set();

/** Names beside points are for wide screens: on a phone they would cover one another. */
const fitting = (trace) =>
  narrow.matches && trace.mode === "markers+text" ? { ...trace, mode: "markers" } : trace;

/** What the box draws now, in the colours of an element: the page, or what is light in either. */
const figureOf = (box, of = document.documentElement) => {
  const source = sources.get(box);
  const figure = typeof source === "function" ? source(box, of) : source;
  const traces = figure.data.map(filtered).filter(Boolean).map(fitting);
  return { data: traces, layout: figure.layout };
};

// Plotly is half of the page's bytes: it is compiled beside it, when the tables can be read already.
const library = element("script", {
  src: URL.createObjectURL(new Blob([document.getElementById("plotly").textContent])),
});
const ready = new Promise((resolve) => library.addEventListener("load", resolve));
addEventListener("load", () => document.head.append(library));
ready.then(() => redraw());

const draw = (box, of = document.documentElement) => {
  const figure = figureOf(box, of);
  drawn.set(box, figure);
  if (!window.Plotly) return;
  const layout = merged(figure.layout, theme(of));
  if (narrow.matches) {
    // A finger that scrolls the page must not zoom the plot, and a legend would fill it.
    layout.dragmode = false;
    layout.showlegend = figure.data.length < 5 && layout.showlegend !== false;
    for (const side of ["xaxis", "yaxis"])
      if (layout[side]?.title?.text)
        layout[side] = merged(layout[side], { title: { text: layout[side].title.text.replace(/\s*\([←↑→↓].*|\s*\(.*[←↑→↓]\)$/, "") } });
  }
  if (layout.height) box.style.height = `${layout.height}px`;
  else layout.height = box.clientHeight || 300;
  const config = { responsive: true, displayModeBar: false, doubleClick: "reset" };
  Plotly.react(box, figure.data, layout, config);
  if (box.dataset.listens) return;
  box.dataset.listens = "true";
  box.on("plotly_click", ({ points }) => {
    const { meta } = points[0].data;
    const of = [meta?.points?.[points[0].pointIndex] ?? meta?.jobs ?? []].flat();
    if (of.length) openJob(of[0]);
  });
};

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) inView.delete(target);
    else {
      inView.add(target);
      if (!drawn.has(target)) draw(target);
    }
  }
}, { rootMargin: "400px" });

/** Tables of numbers that are open below a box: each makes itself anew. */
const tables = new Map();

/** Draw all again: those that are not in view when they come into it. */
const redraw = () => {
  drawn.clear();
  for (const box of inView) if (box.isConnected) draw(box);
  for (const renew of tables.values()) renew();
};

/** Draw `source` in the box, with buttons below it. */
const plot = (box, source, title) => {
  sources.set(box, source);
  drawn.delete(box);
  if (!box.dataset.title) {
    box.setAttribute("role", "img");
    box.after(tools(box, () => rowsOf(box)));
    watcher.observe(box);
  }
  box.dataset.title = title;
  box.setAttribute("aria-label", `Plot: ${title}. Its numbers are behind the buttons after it.`);
  if (inView.has(box)) draw(box);
  tables.get(box)?.();
};

/** No box is left that the page no longer has. */
const forget = (root) => {
  for (const box of root.querySelectorAll(".plot")) {
    watcher.unobserve(box);
    for (const known of [sources, drawn, inView, tables]) known.delete(box);
    if (box.dataset.listens) Plotly.purge(box);
  }
};

// Saving

const fileName = (title, kind) =>
  `${document.title.split(" · ")[0]} ${title}`.replace(/[^\p{L}\p{N}.=-]+/gu, "_").slice(0, 120) +
  `.${kind}`;

const save = (name, href) => {
  const link = element("a", { href, download: name });
  document.body.append(link);
  link.click();
  link.remove();
};

const csv = ([columns, ...rows]) => {
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    // A spreadsheet would take a name that begins like this for a formula.
    if (/^[=+\-@\t\r]/.test(text) && isNaN(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
};

const saveText = (name, text, type) => {
  const url = URL.createObjectURL(new Blob([text], { type }));
  save(name, url);
  setTimeout(() => URL.revokeObjectURL(url), 10000);
};

const plain = (text) => {
  const parsed = new DOMParser().parseFromString(text.replaceAll("<br>", " "), "text/html");
  return parsed.body.textContent.replace(/\s+/g, " ").trim();
};

/** The numbers that a box draws: names of columns, then rows. */
const rowsOf = (box) => {
  const { data: traces, layout } = figureOf(box);
  const named = (axis, name) =>
    plain(layout[axis]?.title?.text ?? "").replace(/\s*\(?[←↑→↓].*$/, "") || name;
  if (traces[0]?.type === "heatmap") {
    const [{ x, y, meta }] = traces;
    const rows = y.flatMap((row, i) => x.map((column, j) =>
      [row, column, meta.values[i][j], ...(meta.intervals[i][j] ?? [null, null])]));
    return [["row", "column", "value", "low", "high"], ...rows];
  }
  const sides = ["x", "y"].filter((side) => traces.some((trace) => trace[`error_${side}`]?.array));
  const header = ["series", "job", named("xaxis", "step"), named("yaxis", "loss, nats per token")];
  for (const side of sides) header.push(`${side} low`, `${side} high`);
  const rows = traces.filter((trace) => !trace.meta?.quiet).flatMap((trace) =>
    trace.x.flatMap((x, at) => {
      const y = trace.y[at];
      if (x === null || y === null) return [];
      const of = [trace.meta?.points?.[at] ?? trace.meta?.jobs ?? []].flat();
      const job = of.map((number) => data.jobs[number].label).join("; ");
      const bounds = sides.flatMap((side) => {
        const bars = trace[`error_${side}`];
        const [up, down] = [bars?.array?.[at], bars?.arrayminus?.[at]];
        const value = side === "x" ? x : y;
        return up || down ? [value - down, value + up] : [null, null];
      });
      return [[plain(trace.name ?? ""), job, x, y, ...bounds]];
    }));
  return [header, ...rows];
};

const savePicture = async (box, format) => {
  await ready;
  const { title } = box.dataset;
  const light = document.querySelector(".light");
  const { data: traces, layout } = figureOf(box, light);
  const margin = layout.margin ?? {};
  const top = (margin.t ?? 30) + 34;
  const size = { width: Math.max(box.clientWidth, 480), height: box.clientHeight + 34 };
  const whole = merged(merged(layout, theme(light)), {
    ...size, paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff",
    margin: { ...margin, t: top },
    title: { text: escaped(title), x: 0.01, xanchor: "left", y: 1, yanchor: "top",
      yref: "container", pad: { t: 10 }, font: { size: 14 } },
  });
  const url = await Plotly.toImage({ data: traces, layout: whole },
    { format, ...size, scale: format === "png" ? 2 : 1 });
  save(fileName(title, format), url);
};

/** A button that copies a text. */
const copies = (made, text) => {
  // Pages that come over plain http have no clipboard.
  made.hidden = !navigator.clipboard;
  made.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    made.textContent = "copied";
    setTimeout(() => { made.textContent = "copy"; }, 1500);
  });
};

const button = (text, act, label = text) => {
  const made = element("button", { type: "button", "aria-label": label }, text);
  made.addEventListener("click", () => act(made));
  return made;
};

const MOST_ROWS = 1000;

const tableOf = ([columns, ...rows]) => {
  const line = (cells, name) => element("tr", {}, ...cells.map((value) => {
    const number = typeof value === "number";
    const text = number ? String(Number(value.toPrecision(6))) : value ?? "–";
    return element(name, { className: number ? "num" : "" }, text);
  }));
  const table = element("table", { className: "numbers" },
    element("thead", {}, line(columns, "th")),
    element("tbody", {}, ...rows.slice(0, MOST_ROWS).map((row) => line(row, "td"))));
  const scroll = element("div", { className: "scroll long", tabIndex: 0, role: "region",
    "aria-label": "numbers" }, table);
  if (rows.length > MOST_ROWS)
    scroll.append(element("p", { className: "note" }, `and ${rows.length - MOST_ROWS} more, in the CSV`));
  return scroll;
};

/** Buttons that save a plot and its numbers. */
const tools = (box, rows) => {
  const title = () => box.dataset.title;
  const bar = element("div", { className: "tools", role: "group", "aria-label": "save this plot" },
    button("PNG", () => savePicture(box, "png"), "save as PNG"),
    button("SVG", () => savePicture(box, "svg"), "save as SVG"),
    button("CSV", () => saveText(fileName(title(), "csv"), csv(rows()), "text/csv"),
      "save its numbers as CSV"));
  let table = null;
  const numbers = button("numbers", () => {
    const renew = () => {
      const next = tableOf(rows());
      if (table) table.replaceWith(next);
      else bar.after(next);
      table = next;
    };
    if (table) {
      table.remove();
      table = null;
      tables.delete(box);
    } else {
      renew();
      tables.set(box, renew);
    }
    numbers.setAttribute("aria-expanded", table !== null);
  }, "show its numbers");
  numbers.setAttribute("aria-expanded", "false");
  bar.append(numbers);
  return bar;
};

dark.addEventListener("change", redraw);
narrow.addEventListener("change", redraw);
// On paper everything is light, and there to be read.
addEventListener("beforeprint", () => {
  for (const box of sources.keys()) draw(box, document.querySelector(".light"));
});
addEventListener("afterprint", redraw);
