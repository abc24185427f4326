// The rest of the page, and its start.

for (const place of document.querySelectorAll("[data-plot]")) {
  const caption = place.parentElement.querySelector("figcaption")?.textContent;
  const heading = place.closest("section").querySelector("h2").textContent;
  plot(place, figures[place.dataset.plot], place.dataset.named || [heading, caption].filter(Boolean).join(": "));
}

for (const table of document.querySelectorAll("table.compare")) {
  const heads = [...table.tHead.rows[1].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const rising = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    const values = rows.map((row) => row.cells[column].dataset.v);
    const numeric = values.every((value) => value === "" || value === "–" || !isNaN(value));
    const empty = (value) => value === "" || value === "–";
    const order = rows.map((_, at) => at).sort((a, b) => {
      const [left, right] = [values[a], values[b]];
      if (empty(left) || empty(right)) return empty(left) - empty(right);
      const sign = numeric ? left - right : left.localeCompare(right);
      return rising ? sign : -sign;
    });
    table.tBodies[0].append(...order.map((at) => rows[at]));
  }));
}

// The numbers of a table that are shown, in the order in which they are.
const rowsOfTable = (table) => {
  const groups = [...table.tHead.rows[0].cells].flatMap((cell) =>
    Array(Number(cell.dataset.all ?? cell.colSpan)).fill(cell.classList.contains("group") ? cell.dataset.name : ""));
  const names = [...table.tHead.rows[1].cells].map((cell, at) =>
    `${groups[at]} ${cell.firstElementChild.textContent}`.trim());
  const header = names.flatMap((name, at) => at && table.tHead.rows[1].cells[at].classList.contains("num") ? [name, `${name}, interval`] : [name]);
  const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => [...row.cells].flatMap((cell, at) => {
    const text = at ? cell.querySelector("span").textContent : cell.dataset.v;
    // A bound is none without its sign.
    const value = cell.dataset.v === "" || at === 0 || /^[<≥]/.test(text) ? text : cell.dataset.v;
    return at && cell.classList.contains("num") ? [value, cell.title || (cell.querySelector("small")?.textContent ?? "")] : [value];
  }));
  return [header, ...rows];
};
for (const made of document.querySelectorAll("[data-save-table]"))
  made.addEventListener("click", () => {
    const title = made.closest("section").querySelector("h2").textContent;
    saveText(fileName(title, "csv"), csv(rowsOfTable(document.getElementById(made.dataset.saveTable))), "text/csv");
  });

document.getElementById("save-matrices")?.addEventListener("click", () => {
  const rows = [...shown].flatMap((job) => {
    const { rows: parts, columns: domains, z, intervals } = matrixOf(job, data.keys.matrix);
    return parts.flatMap((part, i) => domains.map((domain, j) =>
      [data.jobs[job].label, part, domain, z[i][j], ...(intervals[i][j] ?? [null, null])]));
  });
  saveText(fileName("removal matrices", "csv"),
    csv([["job", "removed", "domain", "nats", "low", "high"], ...rows]), "text/csv");
});

// Matrices of many jobs: those that are not in the page yet come when one scrolls to the end, or when
// the filter shows few.
const matrices = document.getElementById("matrices");
if (matrices && data.cards.length) {
  const CHUNK = 48;
  let waiting = data.cards;
  const addCards = (most) => {
    const next = waiting.filter(([job]) => shown.has(job)).slice(0, most);
    const taken = new Set(next);
    waiting = waiting.filter((card) => !taken.has(card));
    // In the order of the jobs, whatever the filter showed first.
    const there = [...matrices.querySelectorAll(".card")];
    for (const [job, card] of next)
      (there.find((one) => Number(one.dataset.job) > job) ?? end).insertAdjacentHTML("beforebegin", card);
    end.hidden = !waiting.some(([job]) => shown.has(job));
  };
  const end = element("p", { className: "note" }, "…");
  matrices.append(end);
  const seen = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) return;
    addCards(CHUNK);
    look();
  }, { root: matrices, rootMargin: "800px" });
  /** It tells of changes alone: the end may be in view still. */
  const look = () => {
    seen.unobserve(end);
    seen.observe(end);
  };
  listeners.push(() => {
    addCards(0);
    look();
  });
  addEventListener("beforeprint", () => addCards(Infinity));
}

// Pictures that are no plots: those of rounds.
document.querySelectorAll(".picture").forEach((picture, at) => {
  const svg = picture.querySelector("svg");
  const title = `${picture.dataset.title}`;
  const source = () => new XMLSerializer().serializeToString(svg);
  picture.after(element("div", { className: "tools", role: "group", "aria-label": "save this picture" },
    button("PNG", async () => {
      const { width, height } = svg.getBoundingClientRect();
      const image = new Image();
      image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source())}`;
      await image.decode();
      const canvas = element("canvas", { width: 2 * width, height: 2 * height });
      const context = canvas.getContext("2d");
      context.scale(2, 2);
      context.drawImage(image, 0, 0, width, height);
      save(fileName(title, "png"), canvas.toDataURL("image/png"));
    }, "save as PNG"),
    button("SVG", () => saveText(fileName(title, "svg"), source(), "image/svg+xml"), "save as SVG"),
    button("CSV", () => saveText(fileName(title, "csv"), csv(data.pictures[at]), "text/csv"),
      "save its numbers as CSV")));
});

// Where one is on a long page. The address is the reader's choices, so these are no anchors.
const contents = document.getElementById("contents");
for (const part of document.querySelectorAll("main > section")) {
  const heading = part.querySelector("h2");
  contents?.append(button(heading.textContent, () => {
    part.scrollIntoView();
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
  }));
}

document.getElementById("save-all")?.addEventListener("click", () => {
  const keys = Object.keys(data.metrics);
  const settings = data.settings.filter((setting) => setting.name !== "kind");
  const header = ["job", ...settings.map((setting) => setting.name),
    ...keys.flatMap((key) => data.metrics[key].intervals ? [key, `${key}/low`, `${key}/high`] : [key])];
  const rows = [...shown].map((job) => [data.jobs[job].name,
    ...settings.map((setting) => setting.of[job] === null ? null : settingValue(setting, job)),
    ...keys.flatMap((key) => data.metrics[key].intervals
      ? [metric(key, job), ...(interval(key, job) ?? [null, null])] : [metric(key, job)])]);
  saveText(fileName("results", "csv"), csv([header, ...rows]), "text/csv");
});

// The columns of single domains beside their means.
for (const fold of document.querySelectorAll("[data-fold]"))
  fold.addEventListener("change", () => {
    const table = document.getElementById(fold.dataset.fold);
    table.classList.toggle("folded", !fold.checked);
    for (const head of table.querySelectorAll("[data-all]"))
      head.colSpan = fold.checked ? head.dataset.all : head.dataset.few;
  });

for (const copy of document.querySelectorAll(".copy"))
  copies(copy, copy.previousElementSibling.textContent);

const followAddress = () => {
  const saved = remembered();
  followAxes();
  if (filterInput && (saved.get("q") ?? "") !== filterInput.value) {
    filterInput.value = saved.get("q") ?? "";
    for (const made of document.querySelectorAll(".facet")) made.follow();
    applyFilter(filterInput.value);
  }
  const wanted = saved.get("job");
  const job = wanted === null ? -1 : data.jobs.findIndex((of) => of.name === wanted);
  if (job >= 0 && job !== opened) openJob(job);
  else if (job < 0 && opened !== null) panel.close();
};
addEventListener("hashchange", followAddress);
followAddress();
if (!filterInput?.value) applyFilter("");
