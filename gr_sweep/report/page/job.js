// What is shown of single jobs: removal matrices, texts, and the view of one job.

const HUES = ["#4c78a8", "#e0802b", "#54a24b", "#c8526b", "#8f6bb3", "#4fa3a0", "#a0745c", "#b8a13a"];
const jobView = document.getElementById("job");
let opened = null, scrolledTo = 0;

const metric = (key, job) => data.metrics[key]?.values[job] ?? null;
const interval = (key, job) => data.metrics[key]?.intervals?.[job] ?? null;
const keyOf = (pattern, part, domain) =>
  pattern.replace("PART", part.replaceAll("/", ".")).replace("DOMAIN", domain.replaceAll("/", "."));
const isUnder = (domain, part) => domain === part || domain.startsWith(`${part}/`);

const signed = (value) => {
  const text = value.toFixed(2).replace("-", "−");
  return value > 0 && text !== "0.00" ? `+${text}` : text.replace(/^−(?=0\.00$)/, "");
};

// Matrices

/** A job's numbers by removed or kept domain and by domain. */
const matrixOf = (job, pattern) => {
  const { nodes, domains } = data.jobs[job];
  const rows = nodes.filter((part) => domains.some((domain) => metric(keyOf(pattern, part, domain), job) !== null));
  const get = (from) => rows.map((part) => domains.map((domain) => from(keyOf(pattern, part, domain), job)));
  return { rows, columns: domains, z: get(metric), intervals: get(interval) };
};

/** A matrix as a table. With `top`, values are painted: `top` has the full colour, and 0 none. */
const heatTable = ({ rows, columns, z, intervals }, { corner, top, isOwn = isUnder }) =>
  element("table", { className: top ? "heat" : "heat plain" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, corner), ...columns.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows.map((row, i) => element("tr", {}, element("th", { scope: "row" }, row), ...columns.map((column, j) => {
      const value = z[i][j], bounds = intervals[i][j];
      const range = bounds ? bounds.map((bound) => (top ? signed(bound).replace("+", "") : bound.toFixed(3))).join(" to ") : "";
      const cell = element("td", { title: range }, value === null ? "–" : top ? signed(value) : value.toFixed(2));
      if (isOwn(column, row)) cell.classList.add("own");
      if (!top) return cell;
      cell.classList.add("cell", value < 0 ? "neg" : "pos");
      cell.style.setProperty("--s", `${Math.round(100 * Math.sqrt(Math.abs(value ?? 0) / top))}%`);
      if (range && columns.length < 5) cell.append(element("small", {}, range));
      return cell;
    })))));

const largest = (values) => Math.max(1e-9, ...values.filter((value) => value !== null).map(Math.abs));
const matrixPrefix = data.keys.matrix.split("PART")[0];
const matrixTop = Object.entries(data.metrics).filter(([key]) => key.startsWith(matrixPrefix))
  .reduce((top, [, { values }]) => Math.max(top, largest(values)), 0);

/** The removal matrix of a job, and the losses of its domains kept alone; null if it has none. */
const matricesOf = (job) => {
  const removal = matrixOf(job, data.keys.matrix), kept = matrixOf(job, data.keys.kept);
  if (!removal.rows.length) return null;
  const pair = element("div", { className: "pair" }, heatTable(removal, { corner: "removed", top: matrixTop }));
  if (kept.rows.length) {
    const full = (of) => kept.columns.map((domain) => of(keyOf(data.keys.full, "", domain), job));
    pair.append(heatTable({
      columns: kept.columns, rows: ["full model", ...kept.rows],
      z: [full(metric), ...kept.z], intervals: [full(interval), ...kept.intervals],
    }, { corner: "kept alone" }));
  }
  return pair;
};

/** Fills a box with an article for each shown job that `make` returns one for: some, then more. */
const listOfJobs = (box, few, make) => {
  let most = few;
  const fill = () => {
    const jobs = [...shown], made = [];
    let at = 0;
    for (; at < jobs.length && made.length < most; at += 1) made.push(make(jobs[at]));
    const articles = made.filter(Boolean);
    box.replaceChildren(...articles);
    if (!articles.length) box.append(element("p", { className: "note" }, "No shown job has any."));
    if (at < jobs.length) box.append(button("more jobs", () => { most += 2 * few; fill(); }));
  };
  listeners.push(() => { most = few; fill(); });
  return fill;
};

const matrices = document.getElementById("matrices");
if (matrices) {
  listOfJobs(matrices, 24, (job) => {
    const made = matricesOf(job);
    return made && element("article", { className: "card" }, element("h3", {}, jobLink(job)), made);
  });
}

const transferTop = Math.max(0.2, largest(data.transfer.flatMap(({ z }) => z.flat())));
document.getElementById("transfer")?.append(...data.transfer.map((matrix) => element("article", { className: "card" },
  element("h3", {}, matrix.label, matrix.seeds > 1 ? element("span", { className: "muted" }, ` mean of ${matrix.seeds} seeds`) : ""),
  heatTable(matrix, { corner: "from", top: transferTop, isOwn: () => false }))));

// Texts

const NAMES = { full: "full model", removed: "without ", kept: "only " };
const ENDS = { length: "", end_of_text: " ends here", not_finite: "not a number: the model diverged" };

const commonLength = (first, second) => {
  let at = 0;
  while (at < first.length && first[at] === second[at]) at += 1;
  return /[\uD800-\uDBFF]/.test(first[at - 1] ?? "") ? at - 1 : at; // Not between the halves of a character.
};

const passage = ({ domain, prompt, reference }) => element("div", { className: "passage" },
  element("h4", {}, `${domain}: a held-out document`),
  element("pre", {}, element("b", {}, prompt), element("span", { className: "same" }, reference)));

/** What all variants of a job's model write after a prompt. */
const textsOf = ({ prompt, samples }) => {
  const full = samples.find(([kind]) => kind === "full")?.[2] ?? "";
  return element("div", { className: "texts" }, ...samples.map(([kind, part, text, end]) => {
    const common = kind === "full" ? 0 : commonLength(text, full);
    const isOwn = part !== null && isUnder(data.texts.prompts[prompt].domain, part);
    return element("div", { className: `text-of ${kind}${isOwn ? " own" : ""}` },
      element("h4", {}, NAMES[kind], element("b", {}, part ?? "")),
      element("pre", {}, element("span", { className: "same" }, text.slice(0, common)), text.slice(common),
        element("i", { className: "same" }, ENDS[end] ?? "")));
  }));
};

const promptSelect = document.getElementById("prompt");
if (promptSelect) {
  const showTexts = listOfJobs(document.getElementById("texts"), 6, (job) => {
    const found = data.texts.of[job].find(({ prompt }) => prompt === Number(promptSelect.value));
    return found && element("article", { className: "job-texts" }, element("h3", {}, jobLink(job)), textsOf(found));
  });
  promptSelect.append(...data.texts.prompts.map(({ domain, prompt }, value) =>
    element("option", { value }, `${domain}: ${prompt.replace(/\s+/g, " ").trim().slice(0, 60)}`)));
  const choose = () => {
    document.getElementById("prompt-text").replaceChildren(passage(data.texts.prompts[promptSelect.value]));
    showTexts();
  };
  promptSelect.addEventListener("change", choose);
  choose();
}

// The view of one job

const configOf = (setting, job) => setting.config?.[job] ?? valueOf(setting, job) ?? "–";

/** Settings that differ between jobs, with the values of one job and of the others. */
const differences = (job) => data.settings.filter(({ varied }) => varied).map((setting) => {
  const theirs = [...new Set(data.jobs.flatMap((_, at) => (at === job ? [] : [configOf(setting, at)])))];
  return [setting.name, configOf(setting, job), theirs.slice(0, 5).join(", ") + (theirs.length > 5 ? ", …" : "")];
});

const plainTable = (label, [header, ...rows]) => {
  const line = (cells, name) => element("tr", {}, ...cells.map((value) =>
    element(name, { className: typeof value === "number" ? "num" : "" },
      typeof value === "number" ? String(Number(value.toPrecision(6))) : value ?? "–")));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label },
    element("table", { className: "rows" }, element("thead", {}, line(header, "th")),
      element("tbody", {}, ...rows.map((row) => line(row, "td")))));
};

/** Losses while training, a colour for each domain, from the curves of the page. */
const curvesOf = (job) => {
  const traces = Object.entries(data.curves).flatMap(([domain, name], at) => figures[name].data.flatMap((trace) => {
    const kept = trace.meta.points.flatMap((of, i) => (of === job && trace.x[i] !== null ? [i] : []));
    if (!kept.length) return [];
    const heldOut = trace.mode === "lines+markers";
    return [{
      ...trace, x: kept.map((i) => trace.x[i]), y: kept.map((i) => trace.y[i]), meta: {}, showlegend: heldOut,
      name: escaped(`${domain}, ${heldOut ? "held out" : "training"}`),
      line: { ...trace.line, color: HUES[at % HUES.length] },
      hovertemplate: "step %{x}<br>%{y:.3f}<extra>%{fullData.name}</extra>",
    }];
  }));
  const title = (text) => ({ text, font: { size: 12 } });
  return traces.length && { data: traces, layout: {
    plot_bgcolor: "rgba(0,0,0,0)", font: { size: 12 }, hovermode: "closest", margin: { l: 56, r: 8, t: 30, b: 42 },
    xaxis: { title: title("step"), rangemode: "tozero" }, yaxis: { title: title("loss, nats per token") },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
  } };
};

const section = (title, ...content) => element("section", {}, element("h3", {}, title), ...content);
const folded = (title, make) => {
  const made = element("details", {}, element("summary", {}, title));
  made.addEventListener("toggle", () => { if (made.open && made.childElementCount === 1) made.append(make()); });
  return made;
};

const fillJob = (job) => {
  const of = data.jobs[job], about = data.about[job];
  forget(jobView);
  jobView.replaceChildren(
    element("nav", { "aria-label": "jobs" }, button("← all jobs", closeJob, "all jobs")),
    element("h2", { id: "job-title", tabIndex: -1 }, tag(of)),
    element("p", { className: "muted" }, "folder ", element("code", {}, of.name), about.when ? ` · ${about.when}` : ""));
  if (about.command) {
    const copy = button("copy", () => navigator.clipboard.writeText(about.command), "copy the command");
    copy.hidden = !navigator.clipboard; // Pages that come over plain http have none.
    jobView.append(element("div", { className: "command" }, element("pre", {}, about.command), copy));
  }
  const differing = differences(job);
  if (differing.length)
    jobView.append(section("Settings", plainTable("settings that differ", [["setting", "this job", "the others"], ...differing])));
  const made = matricesOf(job);
  if (made) jobView.append(section("What removal does", made));
  const curves = curvesOf(job);
  if (curves) {
    const box = element("div", { className: "plot tall" });
    jobView.append(section("Loss while training", box));
    plot(box, curves, `${of.label}: loss while training`);
  }
  if (data.texts.of[job].length)
    jobView.append(section("Text", ...data.texts.of[job].flatMap((one) => [passage(data.texts.prompts[one.prompt]), textsOf(one)])));
  jobView.append(section("Cost and environment", element("div", { className: "facts" }, ...about.facts.filter(([, rows]) => rows.length)
    .map(([title, rows]) => element("div", {}, element("h4", {}, title), element("dl", {}, ...rows.flatMap(([name, value]) =>
      [element("dt", {}, name), element("dd", {}, value)])))))));
  const metrics = Object.keys(data.metrics).filter((key) => metric(key, job) !== null)
    .map((key) => [key, metric(key, job), ...(interval(key, job) ?? [null, null])]);
  const table = [["metric", "value", "low", "high"], ...metrics];
  jobView.append(
    folded(`all ${metrics.length} metrics`, () => element("div", {}, button("CSV", () => saveCsv(`${of.name} metrics`, table), "save the metrics as CSV"),
      plainTable("metrics", table))),
    folded("the whole config", () => plainTable("config", [["setting", "value"],
      ...data.settings.filter((setting) => setting.name !== "kind" && setting.of[job] !== null).map((setting) => [setting.name, configOf(setting, job)])])));
};

/** Shows one job in place of the page. */
const showJob = (job) => {
  if (opened === null) scrolledTo = scrollY;
  opened = job;
  jobView.hidden = false;
  document.body.classList.add("one-job");
  fillJob(job);
  remember({ job: data.jobs[job].name });
  jobView.querySelector("h2").focus();
  scrollTo({ top: 0, behavior: "instant" });
};

const closeJob = () => {
  const { name } = data.jobs[opened];
  opened = null;
  jobView.hidden = true;
  document.body.classList.remove("one-job");
  forget(jobView);
  jobView.replaceChildren();
  remember({ job: "" });
  redraw();
  [...document.querySelectorAll("main a")].find((link) => jobOf(link) === name)?.focus({ preventScroll: true });
  scrollTo({ top: scrolledTo, behavior: "instant" });
};

/** Name of the job that a link leads to. */
const jobOf = (link) => decodeURIComponent(link.getAttribute("href")).slice("#job=".length);

addEventListener("keydown", ({ key }) => { if (key === "Escape" && opened !== null) closeJob(); });
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#job="]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault(); // Keeps the filter and the axes in the address.
  showJob(data.jobs.findIndex(({ name }) => name === jobOf(link)));
});
