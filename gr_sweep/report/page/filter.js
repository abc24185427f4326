// The filter is one line, `edges=both,act seed=0 train.lr>0.001 word`, which the boxes below it write
// too. It hides jobs everywhere on the page.

const filterInput = document.getElementById("filter");

/** The setting that a name or the end of one means: `lr` is `train.lr`. */
const settingNamed = (name) => {
  const exact = data.settings.find((setting) => setting.name === name || setting.short === name);
  const found = data.settings.filter((setting) => setting.name.endsWith(`.${name}`));
  return exact ?? (found.length === 1 ? found[0] : null);
};

const WORD = /(?:[^\s"]|"[^"]*"?)+/g;
const TERM = /^([\w./-]+)(!=|>=|<=|=|>|<)(.*)$/s;
const VALUE = /(?:"[^"]*"?|\[[^\]]*\]?|\{[^}]*\}?|[^,])+/g;
const unquoted = (text) => text.replaceAll('"', "");
const quoted = (text) => (/\s|,/.test(text) && !/^\[\S*\]$/.test(text) || text === "" ? `"${text}"` : text);
const wordsOf = (line) => line.match(WORD) ?? [];
const valuesOf = (text) => (text.match(VALUE) ?? [""]).map(unquoted);

const same = (value, wanted) =>
  value === wanted || (value !== "" && wanted !== "" && Number(value) === Number(wanted));
const TESTS = {
  "=": (value, wanted) => value !== null && wanted.some((one) => same(value, one)),
  "!=": (value, wanted) => value === null || !wanted.some((one) => same(value, one)),
  ">": (value, [wanted]) => value !== null && Number(value) > Number(wanted),
  "<": (value, [wanted]) => value !== null && Number(value) < Number(wanted),
  ">=": (value, [wanted]) => value !== null && Number(value) >= Number(wanted),
  "<=": (value, [wanted]) => value !== null && Number(value) <= Number(wanted),
};

const valueOf = (setting, job) => (setting.of[job] === null ? null : setting.values[setting.of[job]]);

/** A test of a job for each word, and what is wrong with the others. */
const understood = (line) => {
  const tests = [], problems = [];
  for (const word of wordsOf(line)) {
    const [, name, sign, rest] = word.match(TERM) ?? [];
    if (!sign) {
      const text = unquoted(word).toLowerCase();
      tests.push((job) => data.jobs[job].label.toLowerCase().includes(text));
      continue;
    }
    const setting = settingNamed(name), wanted = valuesOf(rest);
    const isOrder = sign.includes(">") || sign.includes("<");
    if (!setting) problems.push(`no setting “${name}”`);
    else if (isOrder && (wanted.length > 1 || wanted[0] === "" || isNaN(wanted[0])))
      problems.push(`“${word}”: ${sign} takes a number`);
    else if (rest === "") problems.push(`“${word}”: no value yet`);
    else tests.push((job) => TESTS[sign](valueOf(setting, job), wanted));
  }
  return { tests, problems };
};

const applyFilter = (line) => {
  const { tests, problems } = understood(line);
  shown = new Set([...data.jobs.keys()].filter((job) => tests.every((test) => test(job))));
  const count = document.getElementById("count"), all = data.jobs.length;
  if (count) {
    count.textContent = problems.join("; ") || (shown.size === all ? `all ${all} jobs` : `${shown.size} of ${all} jobs`);
    count.classList.toggle("problem", problems.length > 0);
    document.getElementById("clear").hidden = !line;
  }
  for (const item of document.querySelectorAll("[data-job]"))
    item.hidden = !shows(item.dataset.job.split(" ").map(Number));
  redraw();
  for (const listener of listeners) listener();
};

/** The words that choose values of a setting, and the others. */
const split = (setting) => {
  const isOf = (word) => {
    const [, name, sign] = word.match(TERM) ?? [];
    return sign === "=" && settingNamed(name) === setting;
  };
  const words = wordsOf(filterInput.value);
  return [words.filter(isOf), words.filter((word) => !isOf(word))];
};

const setFilter = (line) => {
  filterInput.value = line;
  for (const facet of document.querySelectorAll(".facet")) facet.follow();
  applyFilter(line);
};

const facetOf = (setting) => {
  const inputs = setting.values.map((value) => element("input", { type: "checkbox", value }));
  const state = element("span", { className: "state" });
  const facet = element("details", { className: "facet" },
    element("summary", {}, `${setting.short} `, state),
    element("fieldset", {}, element("legend", { className: "hidden" }, setting.name), ...inputs.map((input, at) =>
      element("label", {}, input, ` ${input.value} `,
        element("span", { className: "muted" }, String(setting.of.filter((of) => of === at).length))))));
  facet.addEventListener("change", () => {
    const checked = inputs.filter((input) => input.checked).map((input) => quoted(input.value));
    setFilter([...split(setting)[1], ...(checked.length ? [`${setting.short}=${checked}`] : [])].join(" "));
    remember({ q: filterInput.value });
  });
  facet.follow = () => {
    const chosen = split(setting)[0].flatMap((word) => valuesOf(word.match(TERM)[3]));
    for (const input of inputs) input.checked = chosen.some((one) => same(input.value, one));
    const checked = inputs.filter((input) => input.checked).map((input) => input.value);
    state.textContent = checked.length > 2 ? `${checked.length} chosen` : checked.join(", ") || "any";
    facet.classList.toggle("chosen", checked.length > 0);
  };
  return facet;
};

if (filterInput) {
  const facets = document.getElementById("facets");
  facets.append(...data.settings.filter((setting) => setting.varied && setting.values.length <= 40).slice(0, 12).map(facetOf));
  filterInput.addEventListener("input", () => {
    setFilter(filterInput.value);
    remember({ q: filterInput.value });
  });
  document.getElementById("clear").addEventListener("click", () => {
    setFilter("");
    remember({ q: "" });
    filterInput.focus();
  });
  // One list is open at a time; Escape and a click elsewhere close it.
  const close = (except) => {
    for (const facet of facets.querySelectorAll("[open]")) if (facet !== except) facet.open = false;
  };
  document.addEventListener("click", ({ target }) => close(target.closest(".facet")));
  facets.addEventListener("keydown", ({ key, target }) => {
    if (key !== "Escape") return;
    target.closest(".facet")?.querySelector("summary").focus();
    close();
  });
}

// What the reader chose is in the address, which can be sent to a colleague.

const remembered = () => new URLSearchParams(location.hash.slice(1));
const remember = (changes) => {
  const all = remembered();
  for (const [key, value] of Object.entries(changes))
    if (value) all.set(key, value);
    else all.delete(key);
  history.replaceState(null, "", all.size ? `#${all}` : location.pathname + location.search);
};
