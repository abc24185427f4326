// The filter is one line, `edges=both,act seed=0 train.lr>0.001 word`. It hides jobs everywhere on the
// page.

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

const valueOf = (setting, job) => setting.of[job];

/** A test of a job for each word, and what is wrong with the others. */
const understood = (line) => {
  const tests = [], problems = [];
  for (const word of line.match(WORD) ?? []) {
    const [, name, sign, rest] = word.match(TERM) ?? [];
    if (!sign) {
      const text = unquoted(word).toLowerCase();
      tests.push((job) => data.jobs[job].label.toLowerCase().includes(text));
      continue;
    }
    const setting = settingNamed(name), wanted = valuesOf(rest);
    const isOrder = sign.includes(">") || sign.includes("<");
    if (!setting) problems.push(`no setting “${name}”`);
    else if (rest === "" || (isOrder && (wanted.length > 1 || isNaN(wanted[0]))))
      problems.push(`“${word}”: ${isOrder ? `${sign} takes a number` : "no value yet"}`);
    else tests.push((job) => TESTS[sign](valueOf(setting, job), wanted));
  }
  return { tests, problems };
};

/** Whether the filter hides some seeds of a setting and not others. */
const isPartly = () => data.groups.flat().some((group) => group.some((job) => shown.has(job)) && !group.every((job) => shown.has(job)));

const setFilter = (line) => {
  const { tests, problems } = understood(line);
  shown = new Set([...data.jobs.keys()].filter((job) => tests.every((test) => test(job))));
  if (filterInput) {
    const count = document.getElementById("count"), all = data.jobs.length;
    filterInput.value = line;
    count.textContent = problems.join("; ") || (shown.size === all ? `all ${all} jobs`
      : `${shown.size} of ${all} jobs${isPartly() ? "; tables and matrices show means over all seeds" : ""}`);
    count.classList.toggle("problem", problems.length > 0);
  }
  for (const item of document.querySelectorAll("[data-job]"))
    item.hidden = !shows(item.dataset.job.split(" ").map(Number));
  redraw();
  for (const listener of listeners) listener();
};

// What the reader chose is in the address, which can be sent to a colleague.

const remembered = () => new URLSearchParams(location.hash.slice(1));
const remember = (changes) => {
  const all = remembered();
  for (const [key, value] of Object.entries(changes))
    if (value) all.set(key, value);
    else all.delete(key);
  history.replaceState(null, "", all.size ? `#${all}` : location.pathname + location.search);
};

if (filterInput) {
  const terms = data.settings.filter(({ varied }) => varied)
    .flatMap(({ short, of }) => [...new Set(of)].slice(0, 12).map((value) => `${short}=${value}`));
  document.getElementById("terms").append(...terms.map((value) => element("option", { value })));
  filterInput.addEventListener("input", () => {
    setFilter(filterInput.value);
    remember({ q: filterInput.value });
  });
}
