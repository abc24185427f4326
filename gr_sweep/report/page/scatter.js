// The scatter plot of settings: any two numbers against each other, with the frontier.

const GROUPS_WITH_BARS = 60, LETTER = 6.6, LINE = 15; // Of the labels, in pixels.
const FRONT_COLOUR = "#b8860b";

const axes = new Map(data.axes.map((axis) => [axis.id, axis]));
const chosen = data.chosen.map((id, at) => axes.get(id) ?? data.axes[at] ?? data.axes[0]);
let [across, up] = chosen, ranking = 0; // Settings of other rankings are not comparable.

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const digits = (value) => String(Number(value.toPrecision(4)));

/** 95 % interval of the mean of one value for each seed. */
const tInterval = (values) => {
  const n = values.length, centre = mean(values);
  const half = data.t[n] * Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (n - 1) / n);
  return [centre - half, centre + half];
};

/** The shown jobs that have both numbers, in groups that differ in their seed only. */
const scatterGroups = () => data.groups[ranking].flatMap((group) => {
  const all = group.filter((job) => shown.has(job));
  const jobs = all.filter((job) => across.values[job] !== null && up.values[job] !== null);
  if (!jobs.length) return [];
  const first = data.jobs[jobs[0]], isBound = jobs.some((job) => across.bounds[job] || up.bounds[job]);
  const on = (axis) => {
    const values = jobs.map((job) => axis.values[job]), several = jobs.length > 1 && !isBound;
    return { value: mean(values), interval: several ? tInterval(values) : jobs.length === 1 ? axis.intervals?.[jobs[0]] : null };
  };
  const [x, y] = [on(across), on(up)];
  return [{ jobs, first, isWhole: jobs.length === all.length && !first.control && !isBound, x: x.value, y: y.value, intervals: [x.interval, y.interval] }];
});

/** Groups that nothing beats: see RULE in answer.py. */
const frontOf = (groups) => {
  if (!across.direction || !up.direction) return [];
  const all = groups.filter(({ isWhole }) => isWhole).map((group) => {
    const bySeed = new Map(group.jobs.map((job) => [data.jobs[job].seed, job])), seeds = [...bySeed.keys()].sort();
    return { group, bySeed, seeds, key: `${seeds}` };
  });
  // Only groups with the same seeds are compared: the most seeds, and of those sets the one that most groups have.
  const count = (one) => all.filter(({ key }) => key === one.key).length;
  const [first] = [...all].sort((a, b) => b.seeds.length - a.seeds.length || count(b) - count(a));
  const ranked = all.filter(({ key }) => key === first.key);
  // More than gone is not better than gone.
  const on = (axis, job) => Math.min(axis.values[job], axis.most ?? Infinity) * axis.direction;
  const beats = (a, b) => {
    const differences = [across, up].map((axis) => a.seeds.map((seed) => on(axis, a.bySeed.get(seed)) - on(axis, b.bySeed.get(seed))));
    return differences.every((of) => mean(of) >= 0) && differences.some((of) => (of.length > 1 ? tInterval(of)[0] : of[0]) > 0);
  };
  return ranked.filter((one) => !ranked.some((other) => other !== one && beats(other, one))).map(({ group }) => group);
};

/** Dense models, which have only one of the two numbers, as lines; and what an axis says itself. */
const linesOf = (axis, groups) => {
  const placed = new Set(groups.flatMap(({ jobs }) => jobs));
  const dense = data.groups[ranking].map((group) => group.filter((job) => shown.has(job) && !placed.has(job) && axis.values[job] !== null))
    .filter(([job]) => job !== undefined && data.jobs[job].kind === "dense" && axis.group !== "settings" && axis.group !== "cost");
  const lines = dense.map((jobs) => ({ at: mean(jobs.map((job) => axis.values[job])), name: data.jobs[jobs[0]].short }));
  return axis.line ? [...lines, { at: axis.line[0], name: axis.line[1] }] : lines;
};

/** Means and seeds always fit; intervals and lines as far as they do not squeeze them. */
const rangeOf = (axis, groups, lines) => {
  const within = (value) => (axis.clip ? Math.min(Math.max(value, axis.clip[0]), axis.clip[1]) : value);
  const values = groups.flatMap(({ jobs }) => jobs.map((job) => within(axis.values[job])));
  const ends = groups.flatMap(({ intervals }) => intervals[axis === across ? 0 : 1] ?? []);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || 0.2 * Math.abs(low) || 0.2;
  const near = [...values, ...ends.map((end) => Math.min(Math.max(end, low - 0.25 * span), high + 0.25 * span)),
    ...lines.map(({ at }) => at).filter((at) => at > low - 0.5 * span && at < high + 0.5 * span)];
  return [Math.min(...near) - 0.08 * span, Math.max(...near) + 0.08 * span];
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

const bars = (points, at, visible) => {
  const of = (sign) => points.map(({ group, x, y }) =>
    (group?.intervals[at] ? Math.max(0, sign * (group.intervals[at][sign > 0 ? 1 : 0] - (at ? y : x))) : 0));
  return { type: "data", symmetric: false, array: of(1), arrayminus: of(-1), thickness: 1, width: 0, visible };
};

const briefOf = (short) => {
  const text = short.length > 24 ? short.replaceAll(/[^ ]+=/g, "") : short; // Values say enough; the whole name is in the tooltip.
  return text.length > 30 ? `${text.slice(0, 29)}…` : text;
};
const briefs = new Map(); // How many settings have each.
for (const short of new Set(data.jobs.map((job) => job.short))) briefs.set(briefOf(short), (briefs.get(briefOf(short)) ?? 0) + 1);
const labelOf = ({ short }) => (briefs.get(briefOf(short)) > 1 ? short : briefOf(short));

/** Where the label of each group has room, those of the frontier first; "" where none has. */
const placeLabels = (groups, front, ranges, lines) => {
  const width = scatterBox.clientWidth - 80, height = scatterBox.clientHeight - 80;
  const pixel = ([low, high], value, size) => ((value - low) / (high - low)) * size;
  const spots = groups.map(({ x, y }) => [pixel(ranges[0], x, width), height - pixel(ranges[1], y, height)]);
  const taken = spots.map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
  for (const { at, name } of lines.x) { const x = pixel(ranges[0], at, width); taken.push([x - LINE, 0, x + 2, LETTER * name.length]); }
  for (const { at, name } of lines.y) { const y = height - pixel(ranges[1], at, height); taken.push([0, y - LINE, LETTER * name.length, y + 2]); }
  const places = new Map();
  for (const group of [...front, ...groups.filter((one) => !front.includes(one))]) {
    const [x, y] = spots[groups.indexOf(group)], half = (LETTER * labelOf(group.first).length) / 2;
    const tries = [["top center", x - half, y - 9 - LINE], ["bottom center", x - half, y + 9], ["middle right", x + 11, y - LINE / 2],
      ["middle left", x - 11 - 2 * half, y - LINE / 2], ["top right", x + 6, y - 7 - LINE], ["bottom right", x + 6, y + 7],
      ["top left", x - 6 - 2 * half, y - 7 - LINE], ["bottom left", x - 6 - 2 * half, y + 7]];
    const fits = tries.find(([, left, top]) => left >= 0 && left + 2 * half <= width && top >= 0 && top + LINE <= height
      && !taken.some(([l, t, r, b]) => left < r && left + 2 * half > l && top < b && top + LINE > t));
    if (!fits) continue;
    taken.push([fits[1], fits[2], fits[1] + 2 * half, fits[2] + LINE]);
    places.set(group, fits[0]);
  }
  return places;
};

/** One trace for each look, which a browser draws faster than one for each job. */
const pointTraces = (groups, places) => {
  const looks = new Map();
  const add = (isLarge, { first }, point) => {
    const key = `${isLarge} ${first.edges} ${first.kind}`;
    if (!looks.has(key)) looks.set(key, { isLarge, first, points: [] });
    looks.get(key).points.push(point);
  };
  for (const group of groups) {
    const several = group.jobs.length > 1, { short } = group.first;
    const said = (axis, at, value) => `${axis.name} ${digits(value)}${group.intervals[at] ? ` [${group.intervals[at].map(digits).join(", ")}]` : ""}`;
    if (several) for (const job of group.jobs) add(false, group, { jobs: [job], x: across.values[job], y: up.values[job], hover: hoverOf(job) });
    add(true, group, { jobs: group.jobs, x: group.x, y: group.y, group, place: places.get(group),
      text: places.has(group) ? escaped(labelOf(group.first)) : "",
      hover: several ? `<b>${escaped(short)}</b><br>mean of ${group.jobs.length} seeds<br>${said(across, 0, group.x)}<br>${said(up, 1, group.y)}` : hoverOf(group.jobs[0]) });
  }
  const visible = groups.length <= GROUPS_WITH_BARS;
  return [...looks.values()].sort((a, b) => a.isLarge - b.isLarge).map(({ isLarge, first, points }) => ({
    type: "scatter", mode: isLarge ? "markers+text" : "markers", textposition: points.map(({ place }) => place ?? "top center"),
    x: points.map(({ x }) => x), y: points.map(({ y }) => y), text: points.map(({ text }) => text ?? ""), textfont: { size: 11 },
    hovertext: points.map(({ hover }) => hover), hoverinfo: "text",
    opacity: isLarge ? 1 : 0.45, meta: { points: points.map(({ jobs }) => jobs) },
    marker: { color: first.colour, symbol: first.symbol, size: isLarge ? 10 : 5,
      line: { width: first.symbol.endsWith("-open") ? 2 : 0, color: first.colour } },
    error_x: bars(points, 0, visible), error_y: bars(points, 1, visible),
  }));
};

const frontTraces = (front) => (!front.length ? [] : [{
  type: "scatter", mode: "markers", hoverinfo: "skip", opacity: 0.9, x: front.map(({ x }) => x), y: front.map(({ y }) => y),
  marker: { symbol: "circle-open", size: 18, color: FRONT_COLOUR, line: { width: 1.5 } },
}]);

const sideOf = (axis, isAcross, groups, range) => {
  const better = axis.direction > 0 ? "higher is better" : "lower is better";
  const arrow = isAcross ? (axis.direction > 0 ? "→" : "←") : axis.direction > 0 ? "↑" : "↓";
  const title = { text: escaped(axis.title) + (axis.direction ? `  (${arrow} ${better})` : "") };
  if (!groups.length) return { title };
  return isLog(axis, groups) ? { title, type: "log", autorange: true, exponentformat: "power" } : { title, range, zeroline: false };
};

/** What is not in the plot. */
const noteScatter = (groups) => {
  const placed = groups.flatMap(({ jobs }) => jobs);
  const isBeyond = (job) => [across, up].some(({ clip, values }) => clip && (values[job] < clip[0] || values[job] > clip[1]));
  const beyond = placed.filter(isBeyond).length;
  const missing = [...new Set([across, up])].map(({ name, values }) =>
    [name, [...shown].filter((job) => values[job] === null && data.jobs[job].edges !== "dense").length]);
  document.getElementById("scatter-notes").textContent = [
    ...missing.map(([name, count]) => (count ? `Not drawn: ${count} routed jobs without ${name}.` : "")),
    beyond ? `${beyond} beyond the axes.` : "",
  ].join(" ");
};

const scatterFigure = () => {
  const groups = scatterGroups(), front = frontOf(groups);
  noteScatter(groups);
  const lines = { x: linesOf(across, groups), y: linesOf(up, groups) };
  const ranges = groups.length ? [rangeOf(across, groups, lines.x), rangeOf(up, groups, lines.y)] : [];
  for (const [at, axis] of ["x", "y"].entries())
    lines[axis] = lines[axis].filter((line) => !ranges.length || (line.at >= ranges[at][0] && line.at <= ranges[at][1]));
  const isLinear = ![across, up].some((axis) => isLog(axis, groups));
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
    data: [...frontTraces(front), ...pointTraces(groups, isLinear ? placeLabels(groups, front, ranges, lines) : new Map())],
    layout: {
      showlegend: false, // The key above the plot says the same.
      xaxis: sideOf(across, true, groups, ranges[0]),
      yaxis: sideOf(up, false, groups, ranges[1]),
      margin: { l: 62, r: 18, t: 24, b: 56 },
      shapes: both(shape),
      annotations: groups.length ? both(name)
        : [{ text: "no shown job has both numbers", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
    },
  };
};

const scatterBox = document.getElementById("scatter");
const rankingSelect = document.getElementById("ranking");
const axisSelects = ["x", "y"].map((side) => document.getElementById(`axis-${side}`));

const setAxes = (x, y, of = ranking) => {
  [across, up, ranking] = [x, y, of];
  rankingSelect.value = of;
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
  rankingSelect.append(...data.rankings.map((name, value) => element("option", { value }, name)));
  rankingSelect.parentElement.hidden = data.rankings.length < 2;
  rankingSelect.addEventListener("change", () => {
    setAxes(across, up, Number(rankingSelect.value));
    remember({ of: ranking });
  });
  setAxes(across, up);
}
