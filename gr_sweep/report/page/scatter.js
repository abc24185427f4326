// The scatter plot of jobs: any two numbers against each other, with the Pareto frontier.

const POINTS_WITH_BARS = 40, LABELLED_GROUPS = 24, MOST_LINES = 8;
const FRONT_COLOUR = "#b8860b";

const axes = new Map(data.axes.map((axis) => [axis.id, axis]));
const chosen = data.chosen.map((id, at) => axes.get(id) ?? data.axes[at] ?? data.axes[0]);
let [across, up] = chosen;

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Whether a job's number is only a bound. */
const boundOf = (axis, job) =>
  axis.capped.includes(job) ? "at most" : axis.censored.includes(job) ? "at least" : "";

const numberText = (axis, job) => {
  if (axis.values[job] === null) return "–";
  const digits = (value) => String(Number(value.toPrecision(4)));
  const interval = axis.intervals?.[job];
  return `${boundOf(axis, job)} ${digits(axis.values[job])}${interval ? ` [${interval.map(digits).join(", ")}]` : ""}`.trim();
};

/** The shown jobs that have both numbers, in groups that differ in their seed only. */
const scatterGroups = () => data.groups.flatMap((group) => {
  const all = group.filter((job) => shown.has(job));
  const jobs = all.filter((job) => across.values[job] !== null && up.values[job] !== null);
  if (!jobs.length) return [];
  const first = data.jobs[jobs[0]];
  // Bounds, means over some of the seeds, and controls beat nothing.
  const isWhole = jobs.length === all.length && !first.control && !jobs.some((job) => boundOf(across, job) || boundOf(up, job));
  const centre = (axis) => mean(jobs.map((job) => axis.values[job]));
  return [{ jobs, first, isWhole, x: centre(across), y: centre(up) }];
});

/** Groups that no other is at least as good as in both numbers and better in one, from left to right. */
const frontOf = (groups) => {
  if (!across.direction || !up.direction || groups.length < 2) return [];
  // More than gone is not better than gone.
  const most = (axis, value) => Math.min(value, axis.most ?? Infinity) * axis.direction;
  const points = groups.filter(({ isWhole }) => isWhole).map((group) => ({ ...group, u: most(across, group.x), v: most(up, group.y) }));
  return points
    .filter(({ u, v }) => !points.some((other) => other.u >= u && other.v >= v && (other.u > u || other.v > v)))
    .sort((a, b) => a.x - b.x);
};

/** Models that have only one of the two numbers, dense ones for example, as lines. */
const linesOf = (axis, groups) => {
  const lines = axis.line ? [{ at: axis.line[0], name: axis.line[1], colour: FRONT_COLOUR }] : [];
  if (axis.dense !== undefined) lines.push({ at: axis.dense, name: "dense", colour: "#7d8590" });
  if (!axis.lines) return lines;
  const placed = new Set(groups.flatMap(({ jobs }) => jobs));
  let alone = data.groups.map((group) => group.filter((job) => shown.has(job)))
    .filter((jobs) => jobs.length && jobs.every((job) => !placed.has(job) && axis.values[job] !== null));
  if (alone.length > MOST_LINES) alone = alone.filter(([job]) => data.jobs[job].kind === "dense");
  return [...lines, ...alone.map((jobs) => ({
    at: mean(jobs.map((job) => axis.values[job])), name: data.jobs[jobs[0]].short, colour: data.jobs[jobs[0]].colour,
  }))];
};

const rangeOf = (axis, groups, lines) => {
  const within = (value) => (axis.clip ? Math.min(Math.max(value, axis.clip[0]), axis.clip[1]) : value);
  const jobs = groups.flatMap((group) => group.jobs);
  const values = [...lines.map(({ at }) => at), ...(axis.always ?? []),
    ...jobs.flatMap((job) => [axis.values[job], ...(axis.intervals?.[job] ?? [])])].map(within);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = 0.08 * (high - low) || 0.08 * Math.abs(low) || 0.1;
  return [low - pad, high + pad];
};

/** Settings such as learning rates vary by factors. */
const isLog = (axis, groups) => {
  const values = groups.flatMap(({ jobs }) => jobs.map((job) => axis.values[job]));
  return axis.direction === 0 && Math.min(...values) > 0 && Math.max(...values) > 20 * Math.min(...values);
};

/** The first side of each point on which its name covers no other name or point; empty if none. */
const labelSides = (groups, xRange, yRange, width, height) => {
  const pixel = (value, [low, high], size) => (size * (value - low)) / (high - low);
  const places = groups.map(({ x, y }) => [pixel(x, xRange, width), pixel(y, yRange, height)]);
  const taken = places.map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
  const isFree = (a) => a[0] > 0 && a[1] > 0 && a[2] < width && a[3] < height &&
    !taken.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]);
  return groups.map(({ first }, at) => {
    const [x, y] = places[at], long = 6.8 * first.short.length;
    for (const [side, left] of x < width / 2 ? [["right", x], ["left", x - long]] : [["left", x - long], ["right", x]])
      for (const [level, low] of [["top", y + 8], ["bottom", y - 23]]) {
        const area = [left, low, left + long, low + 15];
        if (isFree(area)) {
          taken.push(area);
          return `${level} ${side}`;
        }
      }
    return "";
  });
};

const hoverOf = (job) => {
  const said = (axis) => `${axis.label} ${numberText(axis, job)}`;
  const ofDomains = data.jobs[job].nodes.map((domain) => [across, up].map((axis) => axes.get(`${axis.id} ${domain}`))
    .filter((axis) => axis && axis.values[job] !== null).map(said).join(", "));
  return [`<b>${escaped(data.jobs[job].label)}</b>`, said(across), said(up), ...ofDomains.filter(Boolean)].join("<br>");
};

const bars = (axis, points, visible) => {
  const of = (sign) => points.map(({ jobs }) => {
    const interval = jobs.length === 1 && axis.intervals?.[jobs[0]];
    return interval ? Math.max(0, sign * (interval[sign > 0 ? 1 : 0] - axis.values[jobs[0]])) : 0;
  });
  return { type: "data", symmetric: false, array: of(1), arrayminus: of(-1), thickness: 1, width: 0, visible };
};

/** One trace for each look, which a browser draws faster than one for each job. */
const pointTraces = (groups, sides) => {
  const looks = new Map();
  const add = (isLarge, { first }, jobs, x, y, hover, text, side) => {
    const key = `${isLarge} ${first.edges} ${first.kind}`;
    if (!looks.has(key)) looks.set(key, { isLarge, first, points: [] });
    looks.get(key).points.push({ jobs, x, y, hover, text, side: side || "top right" });
  };
  groups.forEach((group, at) => {
    const several = group.jobs.length > 1, text = sides[at] ? escaped(group.first.short) : "";
    for (const job of group.jobs)
      add(!several, group, [job], across.values[job], up.values[job], hoverOf(job), several ? "" : text, sides[at]);
    if (several)
      add(true, group, group.jobs, group.x, group.y, `<b>${escaped(group.first.short)}</b><br>mean of ${group.jobs.length} seeds`
        + `<br>${across.label} ${Number(group.x.toPrecision(4))}<br>${up.label} ${Number(group.y.toPrecision(4))}`, text, sides[at]);
  });
  const kinds = new Set(groups.map(({ first }) => first.kind));
  const visible = groups.flatMap(({ jobs }) => jobs).length <= POINTS_WITH_BARS;
  return [...looks.values()].sort((a, b) => a.isLarge - b.isLarge).map(({ isLarge, first, points }) => ({
    type: "scatter", mode: isLarge && !narrow.matches ? "markers+text" : "markers",
    x: points.map(({ x }) => x), y: points.map(({ y }) => y), text: points.map(({ text }) => text),
    textposition: points.map(({ side }) => side), hovertext: points.map(({ hover }) => hover), hoverinfo: "text",
    name: escaped(kinds.size > 1 ? `${first.edges} · ${first.kind}` : first.edges),
    legendgroup: `${first.edges} ${first.kind}`, showlegend: isLarge, opacity: isLarge ? 1 : 0.45,
    meta: { points: points.map(({ jobs }) => jobs) },
    marker: { color: first.colour, symbol: first.symbol, size: isLarge ? 11 : 6,
      line: { width: first.symbol.endsWith("-open") ? 2 : 0, color: first.colour } },
    error_x: bars(across, points, visible), error_y: bars(up, points, visible),
  }));
};

const frontTraces = (front) => (!front.length ? [] : [{
  type: "scatter", mode: "lines", name: "Pareto frontier", hoverinfo: "skip", opacity: 0.8, showlegend: front.length > 1,
  x: front.map(({ x }) => x), y: front.map(({ y }) => y),
  line: { color: FRONT_COLOUR, width: 1.2, shape: across.direction < 0 ? "hv" : "vh" },
}, {
  type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false,
  x: front.map(({ x }) => x), y: front.map(({ y }) => y),
  marker: { symbol: "circle-open", size: 19, color: FRONT_COLOUR, line: { width: 1.5 } },
}]);

const sideOf = (axis, isAcross, groups, range) => {
  const arrow = { 1: isAcross ? "higher is better →" : "↑ higher is better", 0: "",
    "-1": isAcross ? "← lower is better" : "↓ lower is better" }[axis.direction];
  const title = { text: escaped(axis.title) + (arrow ? `  (${arrow})` : ""), font: { size: 12 } };
  if (!groups.length) return { title };
  return isLog(axis, groups) ? { title, type: "log", autorange: true, exponentformat: "power" } : { title, range, zeroline: Boolean(axis.always) };
};

const scatterFigure = (box) => {
  const groups = scatterGroups();
  const lines = { x: linesOf(across, groups), y: linesOf(up, groups) };
  const xRange = rangeOf(across, groups, lines.x), yRange = rangeOf(up, groups, lines.y);
  const isLinear = !isLog(across, groups) && !isLog(up, groups);
  const sides = groups.length <= LABELLED_GROUPS && isLinear
    ? labelSides(groups, xRange, yRange, box.clientWidth - 80, box.clientHeight - 92) : groups.map(() => "");
  const shape = (axis, { at, colour }) => ({
    type: "line", [`${axis}0`]: at, [`${axis}1`]: at, line: { color: colour, width: 1.5, dash: "dot" },
    ...(axis === "x" ? { y0: 0, y1: 1, yref: "y domain" } : { x0: 0, x1: 1, xref: "x domain" }),
  });
  const name = (axis, { at, name }) => ({
    text: escaped(name), showarrow: false, [axis]: at, ...(axis === "x"
      ? { y: 1, yref: "y domain", textangle: -90, xanchor: "right", yanchor: "top" }
      : { x: 0, xref: "x domain", xanchor: "left", yanchor: "bottom" }),
  });
  const both = (make) => ["x", "y"].flatMap((axis) => lines[axis].map((line) => make(axis, line)));
  return {
    data: [...frontTraces(frontOf(groups)), ...pointTraces(groups, sides)],
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { size: 12 },
      hoverlabel: { align: "left" }, hovermode: "closest", meta: { rows: scatterRows },
      xaxis: sideOf(across, true, groups, xRange), yaxis: sideOf(up, false, groups, yRange),
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, margin: { l: 62, r: 12, t: 36, b: 56 },
      shapes: both(shape),
      annotations: groups.length ? both(name)
        : [{ text: "no shown job has both numbers", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
    },
  };
};

/** The numbers of the plot: a header, then a row for each job. */
const scatterRows = () => {
  const bounds = (axis, job) => axis.intervals?.[job] ?? [null, null];
  const groups = scatterGroups();
  const best = new Set(frontOf(groups).flatMap(({ jobs }) => jobs));
  return [
    ["job", across.title, "low", "high", up.title, "low", "high", "on the frontier", "bound across", "bound up"],
    ...groups.flatMap(({ jobs }) => jobs.map((job) => [
      data.jobs[job].label, across.values[job], ...bounds(across, job), up.values[job], ...bounds(up, job),
      best.has(job) ? "yes" : "", boundOf(across, job), boundOf(up, job),
    ])),
  ];
};

const scatterBox = document.getElementById("scatter");
const axisSelects = ["x", "y"].map((side) => document.getElementById(`axis-${side}`));

const noteScatter = () => {
  const groups = scatterGroups(), front = frontOf(groups);
  const placed = new Set(groups.flatMap(({ jobs }) => jobs));
  const missing = [...shown].filter((job) => data.jobs[job].edges !== "dense" && !placed.has(job)).length;
  const isBeyond = (job) => [across, up].some(({ clip, values }) => clip && (values[job] < clip[0] || values[job] > clip[1]));
  const beyond = [...placed].filter(isBeyond).length;
  const said = [];
  if (missing) said.push(`Not drawn: ${missing} job${missing > 1 ? "s" : ""} without one of the two numbers.`);
  if (beyond) said.push(`${beyond} beyond the axes.`);
  const notes = document.getElementById("scatter-notes");
  notes.replaceChildren();
  if (front.length)
    notes.append(element("p", { className: "front" }, element("b", {}, "On the frontier "),
      ...front.map(({ jobs, first }) => jobLink(jobs[0], first.short || first.label))));
  if (said.length) notes.append(element("p", { className: "note" }, said.join(" ")));
};

const setAxes = (x, y) => {
  [across, up] = [x, y];
  axisSelects.forEach((select, at) => { select.value = [x, y][at].id; });
  plot(scatterBox, scatterFigure, `${up.label} over ${across.label}`);
  noteScatter();
};

if (scatterBox) {
  const groups = [...new Set(data.axes.map(({ group }) => group))];
  axisSelects.forEach((select, at) => {
    select.append(...groups.map((label) => element("optgroup", { label }, ...data.axes.filter(({ group }) => group === label)
      .map((axis) => element("option", { value: axis.id }, axis.name)))));
    select.addEventListener("change", () => {
      const axis = axes.get(select.value);
      setAxes(at ? across : axis, at ? axis : up);
      remember({ x: across.id, y: up.id });
    });
  });
  setAxes(across, up);
  listeners.push(noteScatter);
}
