// The view of one job, in place of the page.

const jobView = document.getElementById("job");
let opened = null, scrolledTo = 0;

const metric = (key, job) => data.metrics[key].values[job];
const isUnder = (domain, part) => domain === part || domain.startsWith(`${part}/`);

const plainTable = (label, [header, ...rows]) => {
  const line = (cells, name) => element("tr", {}, ...cells.map((value) => element(name, {}, String(value ?? "–"))));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label },
    element("table", { className: "rows" }, element("thead", {}, line(header, "th")),
      element("tbody", {}, ...rows.map((row) => line(row, "td")))));
};

/** Settings that differ between jobs, with the values of one job and of the others. */
const differences = (job) => data.settings.filter(({ varied }) => varied).map((setting) => {
  const theirs = [...new Set(data.jobs.flatMap((_, at) => (at === job ? [] : [valueOf(setting, at) ?? "–"])))];
  return [setting.name, valueOf(setting, job), theirs.slice(0, 5).join(", ") + (theirs.length > 5 ? ", …" : "")];
});

/** Losses while training, a colour for each domain, from the curves of the page. */
const curvesOf = (job) => {
  const traces = Object.entries(data.curves).flatMap(([domain, name], at) => figures[name].data.flatMap((trace) => {
    const kept = trace.meta.points.flatMap((of, i) => (of === job && trace.x[i] !== null ? [i] : []));
    if (!kept.length) return [];
    const heldOut = trace.mode === "lines+markers";
    return [{
      ...trace, x: kept.map((i) => trace.x[i]), y: kept.map((i) => trace.y[i]), meta: {}, showlegend: heldOut,
      name: escaped(`${domain}, ${heldOut ? "held out" : "training"}`),
      line: { ...trace.line, color: data.hues[at % data.hues.length] },
      hovertemplate: "step %{x}<br>%{y:.3f}<extra>%{fullData.name}</extra>",
    }];
  }));
  return traces.length && { data: traces, layout: {
    margin: { l: 56, r: 8, t: 30, b: 42 },
    xaxis: { title: { text: "step" }, rangemode: "tozero" }, yaxis: { title: { text: "loss, nats per token" } },
  } };
};

// Texts

const NAMES = { full: "full model", removed: "without ", kept: "only " };
const ENDS = { length: "", end_of_text: " ends here" };

/** The beginning of a document, and what all variants of a job's model write after it. */
const textsOf = ({ domain, prompt, reference, samples }) => {
  const begins = element("div", { className: "passage" }, element("h4", {}, `${domain}: a held-out document`),
    element("pre", {}, element("b", {}, prompt), element("span", { className: "same" }, reference)));
  return [begins, element("div", { className: "texts" }, ...samples.map(({ kind, part, text, end }) => {
    const isOwn = part !== null && isUnder(domain, part);
    return element("div", { className: `text-of${isOwn ? " own" : ""}` },
      element("h4", {}, NAMES[kind], element("b", {}, part ?? "")),
      element("pre", {}, text, element("i", { className: "same" }, ENDS[end] ?? "")));
  }))];
};

/** The matrices of a setting, with the numbers of one of its jobs. */
const matricesOf = (job, ofSetting) => {
  const made = ofSetting.cloneNode(true);
  for (const cell of made.querySelectorAll("td")) {
    const value = data.metrics[cell.dataset.key]?.values[job] ?? null, { top } = cell.closest("table").dataset;
    const text = value === null ? "–" : value.toFixed(top ? 2 : 3);
    cell.textContent = (top && value > 0 && Number(text) ? `+${text}` : text).replace("-", "−");
    cell.title = (data.metrics[cell.dataset.key]?.intervals?.[job] ?? []).map((end) => end.toFixed(2)).join(" to ");
    cell.classList.toggle("neg", value < 0);
    if (top) cell.style.setProperty("--s", `${Math.round(100 * Math.sqrt(Math.min(1, Math.abs(value ?? 0) / top)))}%`);
  }
  return made;
};

// The view

const section = (title, ...content) => element("section", {}, element("h3", {}, title), ...content);
const folded = (title, make) => {
  const made = element("details", {}, element("summary", {}, title));
  made.addEventListener("toggle", () => { if (made.open && made.childElementCount === 1) made.append(make()); });
  return made;
};

const fillJob = (job) => {
  const of = data.jobs[job];
  forget(jobView);
  jobView.replaceChildren(
    element("nav", { "aria-label": "jobs" }, button("← all jobs", closeJob)),
    element("h2", { id: "job-title", tabIndex: -1 }, tag(of)),
    element("p", { className: "muted" }, "folder ", element("code", {}, of.name), of.when ? ` · ${of.when}` : ""));
  if (of.command) jobView.append(element("pre", { className: "command" }, of.command));
  const differing = differences(job);
  if (differing.length)
    jobView.append(section("Settings", plainTable("settings that differ", [["setting", "this job", "the others"], ...differing])));
  const matrices = [...document.querySelectorAll(".card")].find((card) => card.dataset.job.split(" ").includes(String(job)));
  if (matrices) jobView.append(section("Matrices", matricesOf(job, matrices.querySelector(".pair"))));
  const curves = curvesOf(job);
  if (curves) {
    const box = element("div", { className: "plot tall" });
    jobView.append(section("Loss while training", box));
    plot(box, curves, `${of.label}: loss while training`);
  }
  const keys = Object.keys(data.metrics).filter((key) => metric(key, job) !== null);
  if (data.texts[job].length)
    jobView.append(folded("what its model writes", () => element("div", {}, element("p", {}, "What each variant of the model writes after the "
      + "beginning of a held-out document. All use the same random numbers. One sample is not a measurement."), ...data.texts[job].flatMap(textsOf))));
  jobView.append(
    folded(`all ${keys.length} metrics`, () => plainTable("metrics", [["metric", "value", "low", "high"],
      ...keys.map((key) => [key, metric(key, job), ...(data.metrics[key].intervals?.[job] ?? [null, null])])])),
    folded("the whole config", () => plainTable("config", [["setting", "value"],
      ...data.settings.filter((setting) => setting.of[job] !== null).map((setting) => [setting.name, valueOf(setting, job)])])),
    folded("environment and fingerprints", () => plainTable("environment", [["name", "value"], ...of.about])));
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
  const closed = opened;
  opened = null;
  jobView.hidden = true;
  document.body.classList.remove("one-job");
  forget(jobView);
  jobView.replaceChildren();
  remember({ job: "" });
  redraw();
  [...document.querySelectorAll("#settings tbody:not(.group)")].find((body) => body.dataset.job.split(" ").includes(String(closed)))
    ?.querySelector("a").focus({ preventScroll: true });
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
