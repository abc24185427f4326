// The scatter of jobs: any two numbers against each other, the frontier between them marked.

const POINTS_WITH_BARS = 40; // More bars would be a thicket: hovering tells the intervals.
const LABELLED_GROUPS = 24; // More names would be a crowd.
const MOST_LINES = 8;
const OTHER_COLOUR = "#b8860b";
const LETTER_WIDTH = 6.8, LINE_HEIGHT = 15; // Pixels.

const axes = new Map(data.axes.map((axis) => [axis.id, axis]));
let across = axes.get(data.chosen[0]) ?? data.axes[0];
let up = axes.get(data.chosen[1]) ?? data.axes[1] ?? data.axes[0];

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** The points that no other is at least as good as in both, from left to right. A direction is 1
 * where higher is better, -1 where lower is. */
const paretoFront = (points, [ofX, ofY]) => {
  const better = [...points].sort((a, b) => (b.x - a.x) * ofX || (b.y - a.y) * ofY);
  const found = [];
  for (const point of better) {
    const last = found.at(-1);
    const isEqual = last && point.x === last.x && point.y === last.y;
    if (!last || isEqual || (point.y - last.y) * ofY > 0) found.push(point);
  }
  return found.sort((a, b) => a.x - b.x);
};

/** Jobs of which a number is known to be below or above one alone. */
const boundOf = (axis, job) =>
  axis.capped.includes(job) ? "at most " : axis.censored.includes(job) ? "at least " : "";

const numberText = (axis, job) => {
  const value = axis.values[job];
  if (value === null) return null;
  const interval = axis.intervals?.[job];
  const bound = boundOf(axis, job);
  const digits = (number) => Number(number.toPrecision(4)).toString();
  return bound + digits(value) + (interval ? ` [${interval.map(digits).join(", ")}]` : "");
};

const hoverOf = (job) => {
  const lines = [`<b>${escaped(data.jobs[job].label)}</b>`];
  const said = (axis) => `${axis.label} ${numberText(axis, job) ?? "–"}`;
  lines.push(...[across, up].map(said));
  for (const domain of data.jobs[job].nodes) {
    const own = [across, up]
      .map((axis) => axes.get(`${axis.id} ${domain}`))
      .filter((axis) => axis && axis.values[job] !== null);
    if (own.length) lines.push(own.map(said).join(", "));
  }
  return lines.join("<br>");
};

/** The shown jobs that have both numbers, in groups that differ in their seed alone. */
const scatterGroups = () =>
  data.groups.flatMap((group) => {
    const all = group.filter((job) => shown.has(job));
    const jobs = all.filter((job) => across.values[job] !== null && up.values[job] !== null);
    if (!jobs.length) return [];
    const centre = (axis) => mean(jobs.map((job) => axis.values[job]));
    // A bound, or a mean over some of the seeds, beats nothing; nor does a control.
    const whole = jobs.length === all.length &&
      !jobs.some((job) => boundOf(across, job) || boundOf(up, job));
    const first = data.jobs[jobs[0]];
    return [{ jobs, first, whole: whole && !first.control, x: centre(across), y: centre(up) }];
  });

const frontOf = (groups) => {
  // One setting beats nothing and is beaten by nothing.
  if (!across.direction || !up.direction || groups.length < 2) return [];
  const most = (axis, value) => Math.min(value, axis.most ?? Infinity);
  const points = groups.filter((group) => group.whole)
    // More than gone is no better than gone.
    .map((group) => ({ group, x: most(across, group.x), y: most(up, group.y) }));
  return paretoFront(points, [across.direction, up.direction]);
};

/** Models that have one of the two numbers alone, as lines: dense, filtered. */
const linesOf = (axis, groups) => {
  if (axis.dense !== undefined)
    return [{ at: axis.dense, name: "dense", colour: data.jobs.find((job) => job.edges === "dense")?.colour ?? "#7d8590" }];
  if (!axis.lines) return [];
  const placed = new Set(groups.flatMap((group) => group.jobs));
  let alone = data.groups.map((group) => group.filter((job) => shown.has(job)))
    .filter((jobs) => jobs.length && !jobs.some((job) => placed.has(job)) &&
      jobs.every((job) => axis.values[job] !== null));
  // Filtered models outnumber the others; where all cannot be seen, dense ones matter.
  if (alone.length > MOST_LINES) alone = alone.filter(([job]) => data.jobs[job].kind === "dense");
  return alone.map((jobs) => ({
    at: mean(jobs.map((job) => axis.values[job])), name: data.jobs[jobs[0]].short,
    colour: data.jobs[jobs[0]].colour, jobs,
  }));
};

const rangeOf = (axis, groups, lines) => {
  const within = (value) => axis.clip ? Math.min(Math.max(value, axis.clip[0]), axis.clip[1]) : value;
  const values = [...lines.map(({ at }) => at), ...(axis.always ?? [])];
  for (const { jobs } of groups)
    for (const job of jobs) values.push(axis.values[job], ...(axis.intervals?.[job] ?? []));
  const kept = values.map(within);
  const [low, high] = [Math.min(...kept), Math.max(...kept)];
  const pad = 0.08 * (high - low) || 0.08 * Math.abs(low) || 0.1;
  return [low - pad, high + pad];
};

/** The side of each point on which its name covers no other name or point; none where there is no
 * room. Sides towards the middle come first. */
const labelSides = (groups, xRange, yRange, width, height) => {
  const pixel = (value, [low, high], size) => (size * (value - low)) / (high - low);
  const reach = 7;
  const places = groups.map((group) => [pixel(group.x, xRange, width), pixel(group.y, yRange, height)]);
  const taken = places.map(([x, y]) => [x - reach, y - reach, x + reach, y + reach]);
  const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  return groups.map((group, at) => {
    const [x, y] = places[at];
    const long = LETTER_WIDTH * group.first.short.length;
    const sides = x < width / 2 ? ["right", "left"] : ["left", "right"];
    for (const side of sides)
      for (const level of ["top", "bottom", "middle"]) {
        let left = side === "right" ? x : x - long;
        if (level === "middle") left += side === "right" ? reach + 1 : -reach - 1;
        const low = y + { top: reach + 1, bottom: -reach - 1 - LINE_HEIGHT, middle: -LINE_HEIGHT / 2 }[level];
        const area = [left, low, left + long, low + LINE_HEIGHT];
        if (left < 0 || low < 0 || area[2] > width || area[3] > height) continue;
        if (taken.some((other) => overlap(area, other))) continue;
        taken.push(area);
        return `${level} ${side}`;
      }
    return "";
  });
};

const bars = (axis, jobs, visible) => {
  const of = (sign) => jobs.map((job) => {
    const interval = job === null ? null : axis.intervals?.[job];
    return interval ? Math.max(0, sign * (interval[sign > 0 ? 1 : 0] - axis.values[job])) : 0;
  });
  return { type: "data", symmetric: false, array: of(1), arrayminus: of(-1), thickness: 1, width: 0, visible };
};

const axisTitle = (axis, isAcross) => {
  const arrow = { 1: isAcross ? "higher is better →" : "↑ higher is better", 0: "",
    "-1": isAcross ? "← lower is better" : "↓ lower is better" }[axis.direction];
  return { text: escaped(axis.title) + (arrow ? `  (${arrow})` : ""), font: { size: 12 } };
};

/** Settings such as learning rates go by factors. */
const isLog = (axis, groups) => {
  const values = groups.flatMap(({ jobs }) => jobs.map((job) => axis.values[job]));
  return axis.direction === 0 && Math.min(...values) > 0 && Math.max(...values) > 20 * Math.min(...values);
};

const scatterFigure = (plotBox) => {
  const groups = scatterGroups();
  const num = groups.reduce((sum, { jobs }) => sum + jobs.length, 0);
  const vertical = linesOf(across, groups), horizontal = linesOf(up, groups);
  if (up.line) horizontal.push({ at: up.line[0], name: up.line[1], colour: OTHER_COLOUR });
  if (across.line) vertical.push({ at: across.line[0], name: across.line[1], colour: OTHER_COLOUR });
  const xRange = rangeOf(across, groups, vertical), yRange = rangeOf(up, groups, horizontal);
  const labelled = groups.length <= LABELLED_GROUPS;
  const size = [(plotBox?.clientWidth || 1000) - 80, (plotBox?.clientHeight || 460) - 92];
  const placed = groups.map((group) => ({ ...group,
    x: isLog(across, groups) ? Math.log10(group.x) : group.x, y: isLog(up, groups) ? Math.log10(group.y) : group.y }));
  const ends = (axis, range) => isLog(axis, groups) ? range.map((end) => Math.log10(Math.max(end, Number.MIN_VALUE))) : range;
  const sides = labelled ? labelSides(placed, ends(across, xRange), ends(up, yRange), ...size) : groups.map(() => "");
  const front = frontOf(groups);
  const traces = [];
  if (front.length) {
    traces.push({
      type: "scatter", mode: "lines", name: "frontier", x: front.map(({ x }) => x),
      y: front.map(({ y }) => y), hoverinfo: "skip", opacity: 0.8, meta: { quiet: true },
      line: { color: OTHER_COLOUR, width: 1.2, shape: across.direction < 0 ? "hv" : "vh" },
      showlegend: front.length > 1,
    }, {
      type: "scatter", mode: "markers", name: "on the frontier", hoverinfo: "skip", showlegend: false,
      x: front.map(({ group }) => group.x), y: front.map(({ group }) => group.y), meta: { quiet: true },
      marker: { symbol: "circle-open", size: 19, color: OTHER_COLOUR, line: { width: 1.5 } },
    });
  }
  // One trace for each look, however many jobs: a browser draws ten traces at once.
  const looks = new Map();
  const add = (isLarge, group, jobs, x, y, hover, text, side) => {
    const key = JSON.stringify([isLarge, group.first.edges, group.first.kind]);
    if (!looks.has(key)) looks.set(key, { isLarge, of: group.first, jobs: [], own: [], x: [], y: [], hovertext: [], text: [], textposition: [] });
    const look = looks.get(key);
    look.jobs.push(jobs);
    look.own.push(jobs.length === 1 ? jobs[0] : null);
    look.x.push(x); look.y.push(y); look.hovertext.push(hover);
    look.text.push(text); look.textposition.push(side || "top right");
  };
  groups.forEach((group, at) => {
    const text = sides[at] ? escaped(group.first.short) : "";
    const several = group.jobs.length > 1;
    for (const job of group.jobs)
      add(!several, group, [job], across.values[job], up.values[job], hoverOf(job), several ? "" : text, sides[at]);
    if (several)
      add(true, group, group.jobs, group.x, group.y,
        `<b>${escaped(group.first.short)}</b><br>mean of ${group.jobs.length} seeds<br>` +
        [across, up].map((axis, i) => `${axis.label} ` +
          // A mean of bounds is one.
          (group.jobs.map((job) => boundOf(axis, job)).find(Boolean) ?? "") +
          Number([group.x, group.y][i].toPrecision(4))).join("<br>"),
        text, sides[at]);
  });
  const kinds = new Set(groups.map(({ first }) => first.kind));
  const ordered = [...looks.values()].sort((a, b) => a.isLarge - b.isLarge);
  for (const look of ordered) {
    const { of, isLarge } = look;
    const visible = num <= POINTS_WITH_BARS;
    traces.push({
      type: "scatter", mode: isLarge && labelled ? "markers+text" : "markers",
      x: look.x, y: look.y, hovertext: look.hovertext, hoverinfo: "text",
      text: look.text, textposition: look.textposition,
      name: escaped(kinds.size > 1 ? `${of.edges} · ${of.kind}` : of.edges),
      legendgroup: `${of.edges} ${of.kind}`, showlegend: isLarge, opacity: isLarge ? 1 : 0.45,
      meta: { points: look.jobs },
      marker: { color: of.colour, symbol: of.symbol, size: isLarge ? 11 : 6,
        line: { width: of.symbol.endsWith("-open") ? 2 : 0, color: of.colour } },
      error_x: bars(across, look.own, visible), error_y: bars(up, look.own, visible),
    });
  }
  const lineShape = (axis, { at, colour }) => ({
    type: "line", [`${axis}0`]: at, [`${axis}1`]: at, line: { color: colour, width: 1.5, dash: "dot" },
    ...(axis === "x" ? { y0: 0, y1: 1, yref: "y domain" } : { x0: 0, x1: 1, xref: "x domain" }),
  });
  const lineName = (axis, { at, name }) => ({
    text: escaped(name), showarrow: false, [axis]: at,
    ...(axis === "x"
      ? { y: 1, yref: "y domain", textangle: -90, xanchor: "right", yanchor: "top" }
      : { x: 0, xref: "x domain", xanchor: "left", yanchor: "bottom" }),
  });
  const named = (lines) => lines.filter(() => labelled || lines.length === 1);
  const side = (axis, isAcross, range) => {
    const title = axisTitle(axis, isAcross);
    return isLog(axis, groups) ? { title, type: "log", autorange: true, exponentformat: "power" } : { title, range, zeroline: Boolean(axis.always) };
  };
  return {
    data: traces,
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { size: 12 },
      hoverlabel: { align: "left" }, hovermode: "closest",
      xaxis: groups.length ? side(across, true, xRange) : { title: axisTitle(across, true) },
      yaxis: groups.length ? side(up, false, yRange) : { title: axisTitle(up, false) },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      margin: { l: 62, r: 12, t: 36, b: 56 },
      shapes: [...vertical.map((line) => lineShape("x", line)), ...horizontal.map((line) => lineShape("y", line))],
      annotations: groups.length
        ? [...named(vertical).map((line) => lineName("x", line)), ...named(horizontal).map((line) => lineName("y", line))]
        : [{ text: "no shown job has both numbers", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
    },
  };
};

const scatterRows = () => {
  const bounds = (axis, job) => axis.intervals?.[job] ?? [null, null];
  const groups = scatterGroups();
  const best = new Set(frontOf(groups).flatMap(({ group }) => group.jobs));
  return [
    ["job", across.title, "low", "high", up.title, "low", "high", "on the frontier", "bound across", "bound up"],
    ...groups.flatMap(({ jobs }) => jobs.map((job) => [
      data.jobs[job].label, across.values[job], ...bounds(across, job),
      up.values[job], ...bounds(up, job), best.has(job) ? "yes" : "", boundOf(across, job).trim(), boundOf(up, job).trim(),
    ])),
  ];
};

const jobLink = (job, text) => {
  const link = element("a", { href: `#job=${encodeURIComponent(data.jobs[job].name)}` }, tag(data.jobs[job], text));
  link.dataset.open = job;
  return link;
};

let followAxes = () => {};
const scatterBox = document.getElementById("scatter");
if (scatterBox) {
  const selects = ["x", "y"].map((side) => document.getElementById(`axis-${side}`));
  const notes = document.getElementById("scatter-notes");
  const note = () => {
    const groups = scatterGroups();
    const front = frontOf(groups);
    const placed = new Set(groups.flatMap(({ jobs }) => jobs));
    const missing = [...shown].filter((job) => data.jobs[job].edges !== "dense" && !placed.has(job)).length;
    const beyond = [...placed].filter((job) => [across, up].some((axis) =>
      axis.clip && (axis.values[job] < axis.clip[0] || axis.values[job] > axis.clip[1]))).length;
    const said = [];
    if (missing) said.push(`Not drawn: ${missing} job${missing > 1 ? "s" : ""} without one of the two numbers.`);
    if (beyond) said.push(`${beyond} beyond the axes.`);
    notes.replaceChildren();
    if (front.length) {
      const names = front.flatMap(({ group }, at) =>
        [at ? " " : "", jobLink(group.jobs[0], group.first.short || group.first.label)]);
      notes.append(element("p", { className: "front" }, element("b", {}, "On the frontier"), " ", ...names));
    }
    if (said.length) notes.append(element("p", { className: "note" }, said.join(" ")));
  };
  const show = () => {
    plot(scatterBox, scatterFigure, `${up.label} over ${across.label}`);
    note();
  };
  /** Put the numbers of the address on the axes; those that it does not name as they were at first. */
  followAxes = () => {
    const wanted = ["x", "y"].map((side, at) => axes.get(remembered().get(side)) ?? first[at]);
    if (wanted[0] === across && wanted[1] === up) return;
    [across, up] = wanted;
    selects.forEach((select, at) => { select.value = wanted[at].id; });
    show();
  };
  const first = [across, up];
  selects.forEach((select, at) => {
    const groups = Map.groupBy ? Map.groupBy(data.axes, (axis) => axis.group)
      : data.axes.reduce((all, axis) => all.set(axis.group, [...(all.get(axis.group) ?? []), axis]), new Map());
    for (const [label, members] of groups)
      select.append(element("optgroup", { label },
        ...members.map((axis) => element("option", { value: axis.id }, axis.name))));
    select.value = first[at].id;
    select.addEventListener("change", () => {
      if (at) up = axes.get(select.value);
      else across = axes.get(select.value);
      remember({ ["xy"[at]]: select.value });
      show();
    });
  });
  document.getElementById("swap").addEventListener("click", () => {
    [across, up] = [up, across];
    selects[0].value = across.id;
    selects[1].value = up.id;
    remember({ x: across.id, y: up.id });
    show();
  });
  show();
  // Its own table: a row a job with both numbers, instead of a row a marker.
  const bar = scatterBox.nextElementSibling;
  bar.replaceWith(tools(scatterBox, scatterRows));
  listeners.push(note);
}
