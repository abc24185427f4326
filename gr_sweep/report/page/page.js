// Tables, and the start of the page.

for (const place of document.querySelectorAll("[data-plot]")) {
  const caption = place.parentElement.querySelector("figcaption")?.textContent;
  const heading = place.closest("section").querySelector("h2").textContent;
  plot(place, figures[place.dataset.plot], [heading, caption].filter(Boolean).join(": "));
}

const isEmpty = (value) => value === "" || value === "–";
for (const table of document.querySelectorAll("table.compare")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const rising = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const isGroup = (body) => body.className === "group", bodies = [...table.tBodies];
    const rows = bodies.filter((body) => !isGroup(body)).map((body) => [body.rows[0].cells[column].dataset.v, body]);
    const isNumeric = rows.every(([value]) => isEmpty(value) || !isNaN(value));
    rows.sort(([a], [b]) => {
      if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
      return (isNumeric ? a - b : a.localeCompare(b)) * (rising ? 1 : -1);
    });
    const sorted = [...bodies.filter(isGroup), ...rows.map(([, body]) => body)];
    for (const group of new Set(bodies.map((body) => body.dataset.group)))
      table.append(...sorted.filter((body) => body.dataset.group === group));
  }));
}

/** One row for each seed of a setting, below its own. */
const seedRows = (body) => {
  const heads = [...body.closest("table").tHead.rows[0].cells], names = [...body.rows[0].cells];
  return body.dataset.job.split(" ").map(Number).map((job) => element("tr", { className: "seed" }, ...heads.map((head, at) => {
    const { key, digits: places } = head.dataset, of = key && (axes.get(key) ?? data.metrics[key]);
    const value = of ? of.values[job] : null;
    if (!at) return element("th", { scope: "row" }, jobLink(job, `seed ${data.jobs[job].seed}`));
    const write = (number) => number.toFixed(places).replace("-", "−");
    const cell = element("td", { className: head.className, "data-name": names[at].dataset.name });
    if (value !== null) cell.append(element("span", {}, (of.bounds?.[job] ?? "") + write(value)));
    if (of?.intervals?.[job]) cell.append(element("small", {}, of.intervals[job].map(write).join(" to ")));
    return cell;
  })));
};

for (const fold of document.querySelectorAll(".seeds"))
  fold.addEventListener("click", () => {
    const body = fold.closest("tbody"), isOpen = fold.getAttribute("aria-expanded") === "true";
    fold.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) for (const row of [...body.rows].slice(1)) row.remove();
    else body.append(...seedRows(body));
  });

// All columns, in the whole width of the page.
for (const fold of document.querySelectorAll("[data-fold]"))
  fold.addEventListener("change", () => {
    document.getElementById(`${fold.dataset.fold}-table`).classList.toggle("folded", !fold.checked);
    fold.closest("#first")?.classList.toggle("wide", fold.checked);
    redraw();
  });

const followAddress = () => {
  const saved = remembered();
  const [x, y] = ["x", "y"].map((side, at) => axes.get(saved.get(side)) ?? chosen[at]);
  const of = data.rankings[saved.get("of")] === undefined ? 0 : Number(saved.get("of"));
  if (scatterBox && (x !== across || y !== up || of !== ranking)) setAxes(x, y, of);
  setFilter(saved.get("q") ?? "");
  const job = data.jobs.findIndex(({ name }) => name === saved.get("job"));
  if (job >= 0 && job !== opened) showJob(job);
  else if (job < 0 && opened !== null) closeJob();
};
addEventListener("hashchange", followAddress);
followAddress();
