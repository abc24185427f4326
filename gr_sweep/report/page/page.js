// Tables, the list of sections, and the start of the page.

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
    const rows = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.v, row]);
    const isNumeric = rows.every(([value]) => isEmpty(value) || !isNaN(value));
    rows.sort(([a], [b]) => {
      if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
      return (isNumeric ? a - b : a.localeCompare(b)) * (rising ? 1 : -1);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }));
}

// The columns of single domains next to their means.
for (const fold of document.querySelectorAll("[data-fold]"))
  fold.addEventListener("change", () => document.getElementById(fold.dataset.fold).classList.toggle("folded", !fold.checked));

// The address holds the reader's choices, so sections are not anchors.
for (const part of document.querySelectorAll("main > section")) {
  const heading = part.querySelector("h2");
  heading.tabIndex = -1;
  document.getElementById("contents").append(button(heading.textContent, () => {
    part.scrollIntoView();
    heading.focus({ preventScroll: true });
  }));
}

const followAddress = () => {
  const saved = remembered();
  const [x, y] = ["x", "y"].map((side, at) => axes.get(saved.get(side)) ?? chosen[at]);
  if (scatterBox && (x !== across || y !== up)) setAxes(x, y);
  setFilter(saved.get("q") ?? "");
  const job = data.jobs.findIndex(({ name }) => name === saved.get("job"));
  if (job >= 0 && job !== opened) showJob(job);
  else if (job < 0 && opened !== null) closeJob();
};
addEventListener("hashchange", followAddress);
followAddress();
