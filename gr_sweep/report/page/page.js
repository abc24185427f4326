"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const boxes = [...document.querySelectorAll("[data-plot]")];

  // Plotly takes no CSS variables: read them, and again when the theme changes.
  const themed = () => {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: value("--line"), zerolinecolor: value("--muted"), linecolor: value("--line"),
      tickcolor: value("--line"), color: value("--muted"),
    };
    const theme = {
      "font.color": value("--ink"), "font.family": getComputedStyle(document.body).fontFamily,
      "hoverlabel.bgcolor": value("--panel"), "hoverlabel.bordercolor": value("--line"),
      "hoverlabel.font.color": value("--ink"), "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": value("--muted"), "modebar.activecolor": value("--ink"),
    };
    for (const name of ["xaxis", "yaxis"])
      for (const [key, colour] of Object.entries(axis)) theme[`${name}.${key}`] = colour;
    return theme;
  };
  if (window.Plotly) {
    const config = {
      responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", scale: 1 },
    };
    const draw = (box, figure) => {
      const tall = box.classList.contains("tall");
      const settings = { ...config, displayModeBar: tall && !narrow.matches ? "hover" : false };
      // On a phone the names of points would cover one another.
      const bare = (trace) => (trace.mode === "markers+text" ? { ...trace, mode: "markers" } : trace);
      const data = narrow.matches ? figure.data.map(bare) : figure.data;
      Plotly.react(box, data, figure.layout, settings).then(() => Plotly.relayout(box, themed()));
    };
    for (const box of boxes) draw(box, [plots[box.dataset.plot]].flat()[0]);
    for (const tabs of document.querySelectorAll(".tabs")) {
      const box = boxes.find((other) => other.dataset.plot === tabs.dataset.for);
      for (const tab of tabs.querySelectorAll("button"))
        tab.addEventListener("click", () => {
          for (const other of tabs.children) other.setAttribute("aria-pressed", other === tab);
          for (const note of tabs.parentElement.querySelectorAll("[data-of]"))
            note.hidden = note.dataset.of !== tab.dataset.tab;
          draw(box, plots[tabs.dataset.for][tab.dataset.tab]);
        });
    }
    dark.addEventListener("change", () => boxes.forEach((box) => Plotly.relayout(box, themed())));
    addEventListener("beforeprint", () => boxes.forEach((box) => Plotly.Plots.resize(box)));
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

  // The columns of single domains beside their means.
  for (const box of document.querySelectorAll("[data-fold]"))
    box.addEventListener("change", () => {
      const table = document.getElementById(box.dataset.fold);
      table.classList.toggle("folded", !box.checked);
      for (const head of table.querySelectorAll("[data-all]"))
        head.colSpan = box.checked ? head.dataset.all : head.dataset.few;
    });

  document.getElementById("filter")?.addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const item of document.querySelectorAll("[data-job]")) {
      const label = item.dataset.job.toLowerCase();
      item.hidden = !words.every((word) => label.includes(word));
    }
  });

  for (const button of document.querySelectorAll(".copy"))
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });

  const openTarget = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", openTarget);
  openTarget();
})();
