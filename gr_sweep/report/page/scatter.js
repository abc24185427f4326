// The scatter plot of jobs: any two numbers against each other, with the Pareto frontier.

const POINTS_WITH_BARS = 40, LABELLED_GROUPS = 8;
const FRONT_COLOUR = "#b8860b";

const axes = new Map(data.axes.map((axis) => [axis.id, axis]));
const chosen = data.chosen.map((id, at) => axes.get(id) ?? data.axes[at] ?? data.axes[0]);
let [across, up] = chosen;

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const digits = (value) => String(Number(value.toPrecision(4)));

/** The shown jobs that have both numbers, in groups that differ in their seed only. */
const scatterGroups = () => data.groups.flatMap((group) => {
  const all = group.filter((job) => shown.has(job));
  const jobs = all.filter((job) => across.values[job] !== null && up.values[job] !== null);
  if (!jobs.length) return [];
  const first = data.jobs[jobs[0]];
  // Bounds, means over some of the seeds, and controls beat nothing.
  const isWhole = jobs.length === all.length && !first.control && !jobs.some((job) => across.bounds[job] || up.bounds[job]);
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

/** Dense models, which have only one of the two numbers, as lines; and what an axis says itself. */
const linesOf = (axis, groups) => {
  const placed = new Set(groups.flatMap(({ jobs }) => jobs));
  const dense = data.groups.map((group) => group.filter((job) => shown.has(job) && !placed.has(job) && axis.values[job] !== null))
    .filter(([job]) => job !== undefined && data.jobs[job].kind === "dense" && axis.group !== "settings" && axis.group !== "cost");
  const lines = dense.map((jobs) => ({ at: mean(jobs.map((job) => axis.values[job])), name: data.jobs[jobs[0]].short }));
  return axis.line ? [...lines, { at: axis.line[0], name: axis.line[1] }] : lines;
};

const rangeOf = (axis, groups, lines) => {
  const within = (value) => (axis.clip ? Math.min(Math.max(value, axis.clip[0]), axis.clip[1]) : value);
  const jobs = groups.flatMap((group) => group.jobs);
  const values = [...lines.map(({ at }) => at), ...jobs.flatMap((job) => [axis.values[job], ...(axis.intervals?.[job] ?? [])])].map(within);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = 0.08 * (high - low) || 0.08 * Math.abs(low) || 0.1;
  return [low - pad, high + pad];
};

/** Settings such as learning rates vary by factors. */
const isLog = (axis, groups) => {
  const values = groups.flatMap(({ jobs }) => jobs.map((job) => axis.values[job]));
  return ["settings", "cost"].includes(axis.group) && Math.min(...values) > 0 && Math.max(...values) > 20 * Math.min(...values);
};

const hoverOf = (job) => {
  const said = (axis) => {
    const interval = axis.intervals?.[job];
    return `${axis.name} ${escaped(axis.bounds[job])}${digits(axis.values[job])}${interval ? ` [${interval.map(digits).join(", ")}]` : ""}`;
  };
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
const pointTraces = (groups) => {
  const looks = new Map(), isLabelled = groups.length <= LABELLED_GROUPS && !narrow.matches;
  const add = (isLarge, { first }, jobs, x, y, hover) => {
    const key = `${isLarge} ${first.edges} ${first.kind}`;
    if (!looks.has(key)) looks.set(key, { isLarge, first, points: [] });
    looks.get(key).points.push({ jobs, x, y, hover, text: isLarge ? escaped(first.short) : "" });
  };
  for (const group of groups) {
    const several = group.jobs.length > 1;
    for (const job of group.jobs) add(!several, group, [job], across.values[job], up.values[job], hoverOf(job));
    if (several)
      add(true, group, group.jobs, group.x, group.y, `<b>${escaped(group.first.short)}</b><br>mean of ${group.jobs.length} seeds`
        + `<br>${across.name} ${digits(group.x)}<br>${up.name} ${digits(group.y)}`);
  }
  const visible = groups.flatMap(({ jobs }) => jobs).length <= POINTS_WITH_BARS;
  return [...looks.values()].sort((a, b) => a.isLarge - b.isLarge).map(({ isLarge, first, points }) => ({
    type: "scatter", mode: isLarge && isLabelled ? "markers+text" : "markers", textposition: "top center",
    x: points.map(({ x }) => x), y: points.map(({ y }) => y), text: points.map(({ text }) => text),
    hovertext: points.map(({ hover }) => hover), hoverinfo: "text",
    opacity: isLarge ? 1 : 0.45, meta: { points: points.map(({ jobs }) => jobs) },
    marker: { color: first.colour, symbol: first.symbol, size: isLarge ? 11 : 6,
      line: { width: first.symbol.endsWith("-open") ? 2 : 0, color: first.colour } },
    error_x: bars(across, points, visible), error_y: bars(up, points, visible),
  }));
};

const frontTraces = (front) => (!front.length ? [] : [{
  type: "scatter", mode: "lines+markers", hoverinfo: "skip", opacity: 0.8,
  x: front.map(({ x }) => x), y: front.map(({ y }) => y),
  line: { color: FRONT_COLOUR, width: 1.2, shape: across.direction < 0 ? "hv" : "vh" },
  marker: { symbol: "circle-open", size: 19, color: FRONT_COLOUR, line: { width: 1.5 } },
}]);

const sideOf = (axis, isAcross, groups, range) => {
  const better = axis.direction > 0 ? "higher is better" : "lower is better";
  const arrow = isAcross ? (axis.direction > 0 ? "→" : "←") : axis.direction > 0 ? "↑" : "↓";
  const title = { text: escaped(axis.title) + (axis.direction ? `  (${arrow} ${better})` : "") };
  if (!groups.length) return { title };
  return isLog(axis, groups) ? { title, type: "log", autorange: true, exponentformat: "power" } : { title, range, zeroline: false };
};

/** Links to the settings on the frontier, and what is not in the plot. */
const noteScatter = (groups, front) => {
  const placed = new Set(groups.flatMap(({ jobs }) => jobs));
  const missing = [...shown].filter((job) => data.jobs[job].edges !== "dense" && !placed.has(job)).length;
  const isBeyond = (job) => [across, up].some(({ clip, values }) => clip && (values[job] < clip[0] || values[job] > clip[1]));
  const beyond = [...placed].filter(isBeyond).length;
  const notes = document.getElementById("scatter-notes");
  notes.replaceChildren(...front.map(({ jobs, first }) => jobLink(jobs[0], first.short)));
  if (front.length) notes.prepend(element("b", {}, "On the frontier "));
  if (missing) notes.append(` Not drawn: ${missing} without one of the two numbers.`);
  if (beyond) notes.append(` ${beyond} beyond the axes.`);
};

const scatterFigure = () => {
  const groups = scatterGroups(), front = frontOf(groups);
  noteScatter(groups, front);
  const lines = { x: linesOf(across, groups), y: linesOf(up, groups) };
  const shape = (axis, { at }) => ({
    type: "line", [`${axis}0`]: at, [`${axis}1`]: at, line: { color: "#7d8590", width: 1.5, dash: "dot" },
    ...(axis === "x" ? { y0: 0, y1: 1, yref: "y domain" } : { x0: 0, x1: 1, xref: "x domain" }),
  });
  const name = (axis, { at, name }) => ({
    text: escaped(name), showarrow: false, [axis]: at, ...(axis === "x"
      ? { y: 1, yref: "y domain", textangle: -90, xanchor: "right", yanchor: "top" }
      : { x: 0, xref: "x domain", xanchor: "left", yanchor: "bottom" }),
  });
  const both = (make) => ["x", "y"].flatMap((axis) => lines[axis].map((line) => make(axis, line)));
  return {
    data: [...frontTraces(front), ...pointTraces(groups)],
    layout: {
      showlegend: false, // The key above the plot says the same.
      xaxis: sideOf(across, true, groups, rangeOf(across, groups, lines.x)),
      yaxis: sideOf(up, false, groups, rangeOf(up, groups, lines.y)),
      margin: { l: 62, r: 12, t: 36, b: 56 },
      shapes: both(shape),
      annotations: groups.length ? both(name)
        : [{ text: "no shown job has both numbers", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
    },
  };
};

const scatterBox = document.getElementById("scatter");
const axisSelects = ["x", "y"].map((side) => document.getElementById(`axis-${side}`));

const setAxes = (x, y) => {
  [across, up] = [x, y];
  axisSelects.forEach((select, at) => { select.value = [x, y][at].id; });
  plot(scatterBox, scatterFigure, `${up.name} over ${across.name}`);
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
}
