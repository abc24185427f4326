// The panel of one job: what sets it apart, its matrices, curves, texts and cost.

const panel = document.getElementById("job");
const HUES = ["#4c78a8", "#e0802b", "#54a24b", "#c8526b", "#8f6bb3", "#4fa3a0", "#a0745c", "#b8a13a"];
let opened = null;
let openedFrom = null;

const metric = (key, job) => data.metrics[key]?.values[job] ?? null;
const interval = (key, job) => data.metrics[key]?.intervals?.[job] ?? null;
const keyOf = (pattern, part, domain) =>
  pattern.replace("PART", part.replaceAll("/", ".")).replace("DOMAIN", domain.replaceAll("/", "."));

const section = (title, ...content) =>
  element("section", { className: "part" }, element("h3", {}, title), ...content);

const definitions = (pairs) => element("dl", {}, ...pairs.flatMap(([name, value]) =>
  [element("dt", {}, name), element("dd", {}, value)]));

const settingValue = (setting, job) =>
  setting.config?.[job] ?? (setting.of[job] === null ? "–" : setting.values[setting.of[job]]);

/** How the job's settings differ from those of another job, or of all others. */
const differences = (job, other) => {
  const rows = [];
  for (const setting of data.settings) {
    const own = settingValue(setting, job);
    if (other !== null) {
      const theirs = settingValue(setting, other);
      if (own !== theirs) rows.push([setting.name, own, theirs]);
    } else if (setting.varied) {
      const counts = new Map();
      data.jobs.forEach((_, at) => {
        if (at === job) return;
        const value = settingValue(setting, at);
        counts.set(value, (counts.get(value) ?? 0) + 1);
      });
      const common = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 5)
        .map(([value, count]) => `${value} ×${count}`).join(", ");
      rows.push([setting.name, own, counts.size > 5 ? `${common}, …` : common]);
    }
  }
  return rows;
};

const differencesTable = (job, other) => {
  const rows = differences(job, other);
  if (!rows.length) return element("p", { className: "note" }, "No setting differs.");
  const head = ["setting", "this job", other === null ? "the others" : data.jobs[other].label];
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "settings that differ" },
    element("table", { className: "diff" },
      element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows.map(([name, own, theirs]) => element("tr", {},
        element("th", { scope: "row" }, name), element("td", { className: "own" }, own), element("td", {}, theirs))))));
};

const number = (value, signed) => {
  const text = value.toFixed(2).replace(/^-(?=0\.00$)/, "");
  return (signed && value > 0 && text !== "0.00" ? "+" : "") + text.replace("-", "−");
};

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** Black or white, whichever is further from a mix of two colours. */
const legibleOn = (base, paint, share) => {
  const [low, high] = [channels(base), channels(paint)];
  const linear = low.map((value, at) => {
    const mixed = (value + share * (high[at] - value)) / 255;
    return mixed <= 0.04045 ? mixed / 12.92 : ((mixed + 0.055) / 1.055) ** 2.4;
  });
  // WCAG 2: relative luminance, at which black and white have the same contrast.
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000000" : "#ffffff";
};

/** A matrix with its numbers in it: signed ones diverge at 0, where colour goes with the square root,
 * as on the page: half a nat is seen beside ten. `isOwn` says which cells a part is meant for. */
const heatMap = ({ rows, columns, z, intervals, signed, isOwn }) => (_, of) => {
  const flat = z.flat().filter((value) => value !== null);
  const most = Math.max(...flat.map(Math.abs), 1e-9);
  const [low, high] = [Math.min(...flat), Math.max(...flat)];
  const strength = (value) => {
    if (value === null) return null;
    return signed ? Math.sign(value) * Math.sqrt(Math.abs(value) / most) : 0.75 * (value - low) / (high - low || 1);
  };
  const style = getComputedStyle(of);
  const paint = (name) => style.getPropertyValue(name).trim();
  const scale = signed
    ? [[0, paint("--neg")], [0.5, paint("--base")], [1, paint("--pos")]]
    : [[0, paint("--base")], [1, paint("--muted")]];
  const annotations = z.flatMap((row, i) => row.map((value, j) => {
    const bounds = columns.length < 6 && value !== null && intervals[i][j];
    const shownNumber = value === null ? "–" : number(value, signed);
    const range = bounds
      ? `<br><span style="font-size:10px">${bounds.map((bound) => number(bound, false)).join(" to ")}</span>` : "";
    return {
      x: columns[j], y: rows[i], showarrow: false,
      text: (isOwn(rows[i], columns[j]) ? `<b>${shownNumber}</b>` : shownNumber) + range,
      font: { size: 13, color: legibleOn(paint("--base"),
        paint(!signed ? "--muted" : value < 0 ? "--neg" : "--pos"), Math.abs(strength(value))) },
    };
  }));
  return {
    data: [{
      type: "heatmap", x: columns, y: rows, z: z.map((row) => row.map(strength)), xgap: 3, ygap: 3,
      colorscale: scale, showscale: false, zmin: signed ? -1 : 0, zmax: 1,
      text: z.map((row) => row.map((value) => value === null ? "–" : number(value, signed))),
      hovertemplate: "%{y} → %{x}<br>%{text}<extra></extra>", meta: { intervals, values: z },
    }],
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { size: 12 }, annotations,
      height: 42 + 54 * rows.length,
      xaxis: { side: "top", fixedrange: true, type: "category", showgrid: false, ticks: "" },
      yaxis: { autorange: "reversed", automargin: true, fixedrange: true, type: "category", showgrid: false, ticks: "" },
      margin: { l: 70, r: 4, t: 30, b: 8 },
    },
  };
};

const matrixOf = (job, pattern) => {
  const { nodes, domains } = data.jobs[job];
  const rows = nodes.filter((part) => domains.some((domain) => metric(keyOf(pattern, part, domain), job) !== null));
  const get = (from) => rows.map((part) => domains.map((domain) => from(keyOf(pattern, part, domain), job)));
  return { rows, columns: domains, z: get(metric), intervals: get(interval) };
};

const figureBox = (title, source, className = "plot") => {
  const box = element("div", { className });
  const figure = element("figure", {}, element("figcaption", {}, title), box);
  return [figure, () => plot(box, source, title)];
};

/** The losses while training, a colour a domain, from the curves of the whole page. */
const curvesOf = (job) => {
  const traces = [];
  Object.entries(data.curves).forEach(([domain, name], at) => {
    for (const trace of figures[name].data) {
      const kept = trace.meta.points.flatMap((of, i) => of === job && trace.x[i] !== null ? [i] : []);
      if (!kept.length) continue;
      const heldOut = trace.mode === "lines+markers";
      traces.push({
        type: "scatter", mode: trace.mode, x: kept.map((i) => trace.x[i]), y: kept.map((i) => trace.y[i]),
        name: escaped(`${domain}${heldOut ? ", held out" : ", training"}`), showlegend: heldOut,
        line: { color: HUES[at % HUES.length], width: heldOut ? 2 : 1 }, opacity: heldOut ? 1 : 0.45,
        marker: { size: 6 }, hovertemplate: "step %{x}<br>%{y:.3f}<extra>%{fullData.name}</extra>",
      });
    }
  });
  return traces.length && {
    data: traces,
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { size: 12 }, hovermode: "closest",
      xaxis: { title: { text: "step", font: { size: 12 } }, rangemode: "tozero" },
      yaxis: { title: { text: "loss, nats per token", font: { size: 12 } } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, margin: { l: 56, r: 8, t: 30, b: 42 },
    },
  };
};

const metricsTable = (job) => {
  const rows = Object.keys(data.metrics).filter((key) => metric(key, job) !== null)
    .map((key) => [key, metric(key, job), ...(interval(key, job) ?? [null, null])]);
  return [["metric", "value", "low", "high"], ...rows];
};

const copyable = (text) => {
  const copy = element("button", { type: "button", className: "copy", "aria-label": "copy the command" }, "copy");
  copies(copy, text);
  return element("div", { className: "command" }, element("pre", {}, text), copy);
};

const configList = (job) => element("dl", {}, ...data.settings
  .filter((setting) => setting.of[job] !== null && setting.name !== "kind")
  .map((setting) => {
    const row = element("div", {}, element("dt", {}, setting.name), element("dd", {}, settingValue(setting, job)));
    if (setting.varied) row.className = "varied";
    return row;
  }));

const fillPanel = (job) => {
  forget(panel);
  const of = data.jobs[job], about = data.about[job];
  const draws = [];
  const add = (title, source, className) => {
    const [figure, start] = figureBox(title, source, className);
    draws.push(start);
    return figure;
  };
  const order = [...shown];
  const at = order.indexOf(job);
  const step = (by, text, label) => {
    const next = order[at + by];
    const made = button(text, () => {
      showJob(next);
      // The buttons are new ones: the focus stays on the same, or where it cannot, on the name.
      const same = panel.querySelector(`[aria-label="${label}"]`);
      (same.disabled ? panel.querySelector("h2") : same).focus();
    }, label);
    made.disabled = at < 0 || next === undefined;
    return made;
  };
  const closing = button("✕", () => panel.close(), "close");
  const head = element("header", {},
    element("h2", { id: "job-title", tabIndex: -1 }, tag(of)),
    element("div", { className: "moves" }, step(-1, "←", "previous job"), step(1, "→", "next job"), closing));
  const body = element("div", { className: "body" });
  body.append(element("p", { className: "muted" }, "folder ", element("code", {}, of.name),
    about.when ? ` · ${about.when}` : ""));
  if (about.command) body.append(copyable(about.command));
  if (about.alone) body.append(element("p", { className: "muted" }, "This job alone:"), copyable(about.alone));

  const choice = element("select", { "aria-label": "compare its settings with" },
    element("option", { value: "" }, "all other jobs"),
    ...data.jobs.flatMap((other, number) => number === job ? [] : [element("option", { value: number }, other.label)]));
  const differing = element("div", {}, differencesTable(job, null));
  choice.addEventListener("change", () =>
    differing.replaceChildren(differencesTable(job, choice.value === "" ? null : Number(choice.value))));
  if (data.jobs.length > 1)
    body.append(section("What sets it apart", element("p", {}, "Settings that differ from ", choice), differing));

  const removal = matrixOf(job, data.keys.matrix);
  const kept = matrixOf(job, data.keys.kept);
  const maps = element("div", { className: "multiples wide" });
  const isOwn = (part, domain) => isUnder(domain, part);
  if (removal.rows.length)
    maps.append(add("Nats that removing the row adds to the loss on the column",
      heatMap({ ...removal, signed: true, isOwn })));
  if (kept.rows.length) {
    const full = (of) => kept.columns.map((domain) => of(keyOf(data.keys.full, "", domain), job));
    maps.append(add("Loss on the column with the row alone kept, nats per token", heatMap({
      rows: ["full model", ...kept.rows], columns: kept.columns, signed: false, isOwn,
      z: [full(metric), ...kept.z], intervals: [full(interval), ...kept.intervals],
    })));
  }
  if (maps.childElementCount) body.append(section("What removal does", maps));

  const curves = curvesOf(job);
  if (curves) body.append(section("Loss while training", add("Loss by step", curves, "plot medium")));
  if (data.texts.of[job].length) body.append(section("Text", ...data.texts.of[job].flatMap((one) =>
    [passage(data.texts.prompts[one.prompt]), textsOf(one)])));

  const facts = element("div", { className: "facts" });
  for (const [title, rows] of about.facts)
    if (rows.length) facts.append(element("div", {}, element("h4", {}, title), definitions(rows)));
  body.append(section("Cost and environment", facts));

  const all = metricsTable(job);
  const fold = (title, make, ...beside) => {
    const made = element("details", { className: "config" }, element("summary", {}, title));
    made.addEventListener("toggle", () => {
      if (made.open && made.childElementCount === 1) made.append(make());
    });
    return element("div", {}, made, ...beside);
  };
  body.append(fold(`all ${all.length - 1} metrics`, () => element("div", {}, tableOf(all), element("div", { className: "tools" },
    button("CSV", () => saveText(fileName(`${of.name} metrics`, "csv"), csv(all), "text/csv"), "save the metrics as CSV")))));
  body.append(fold("the whole config", () => configList(job)));
  panel.replaceChildren(head, body);
  for (const start of draws) start();
};

const showJob = (job) => {
  opened = job;
  fillPanel(job);
  panel.scrollTop = 0;
  remember({ job: data.jobs[job].name });
};

const openJob = (job) => {
  if (!panel.open) openedFrom = document.activeElement;
  showJob(job);
  if (!panel.open) panel.showModal();
  panel.querySelector("h2").focus();
};

// On paper the panel is a page, and nothing above one.
let reopenings = 0;
const reopen = (how) => {
  if (opened === null) return;
  reopenings += 1;
  panel.close();
  how();
};
addEventListener("beforeprint", () => reopen(() => panel.show()));
addEventListener("afterprint", () => reopen(() => panel.showModal()));

panel?.addEventListener("close", () => {
  if (reopenings) {
    reopenings -= 1;
    return;
  }
  opened = null;
  remember({ job: "" });
  forget(panel);
  panel.replaceChildren();
  openedFrom?.focus?.();
});
// A click beside the panel closes it, but for one that began inside, as when text is marked.
let pressed = null;
panel?.addEventListener("pointerdown", (event) => { pressed = event.target; });
panel?.addEventListener("click", (event) => {
  if (event.target === panel && pressed === panel) panel.close();
});
panel?.addEventListener("keydown", (event) => {
  // Arrows scroll what can be scrolled.
  if (event.altKey || event.ctrlKey || event.metaKey || opened === null) return;
  if (event.target.matches("input, select, textarea, [role=region]")) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const order = [...shown];
  const next = order[order.indexOf(opened) + by];
  if (!by || next === undefined) return;
  showJob(next);
  panel.querySelector("h2").focus();
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-open]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  openJob(Number(link.dataset.open));
});
