// The filter is one line of text, which the boxes below it write too: `edges=both,act seed=0
// train.lr>0.001 word`. It hides jobs everywhere on the page.

const filterInput = document.getElementById("filter");
const settingsOf = new Map();
for (const setting of data.settings)
  for (const name of [setting.name, setting.short])
    if (!settingsOf.has(name)) settingsOf.set(name, setting);

/** The setting that a name or the end of one means: `lr` is `train.lr`. */
const settingNamed = (name) => {
  if (settingsOf.has(name)) return settingsOf.get(name);
  const found = data.settings.filter((setting) => setting.name.endsWith(`.${name}`));
  return found.length === 1 ? found[0] : null;
};

const WORD = /(?:[^\s"]|"(?:\\.|[^"\\])*"?)+/g;
const TERM = /^([\w./-]+)(!=|>=|<=|=|>|<)(.*)$/s;
const VALUE = /(?:"(?:\\.|[^"\\])*"?|\[[^\]]*\]?|\{[^}]*\}?|[^,])+/g;

const unquoted = (text) => text.replace(/"((?:\\.|[^"\\])*)"?/g, (_, inner) =>
  inner.replace(/\\(.)/g, "$1"));
const quoted = (text) =>
  /[\s",\\]/.test(text) && !/^\[[^\s"\]\\]*\]$/.test(text) || text === ""
    ? `"${text.replace(/["\\]/g, "\\$&")}"` : text;

const same = (value, wanted) =>
  value === wanted ||
  (value !== "" && wanted !== "" && !isNaN(value) && !isNaN(wanted) && Number(value) === Number(wanted));

const TESTS = {
  "=": (value, wanted) => value !== null && wanted.some((one) => same(value, one)),
  "!=": (value, wanted) => value === null || !wanted.some((one) => same(value, one)),
  ">": (value, [wanted]) => value !== null && Number(value) > Number(wanted),
  "<": (value, [wanted]) => value !== null && Number(value) < Number(wanted),
  ">=": (value, [wanted]) => value !== null && Number(value) >= Number(wanted),
  "<=": (value, [wanted]) => value !== null && Number(value) <= Number(wanted),
};

/** What a line says: a test of a job for each word, and what of it cannot be understood. */
const understood = (line) => {
  const tests = [], problems = [];
  for (const word of line.match(WORD) ?? []) {
    const [, name, sign, rest] = word.match(TERM) ?? [];
    if (!sign) {
      const text = unquoted(word).toLowerCase();
      tests.push((job) => data.jobs[job].label.toLowerCase().includes(text));
      continue;
    }
    const setting = settingNamed(name);
    const wanted = (rest.match(VALUE) ?? [""]).map(unquoted);
    if (!setting) problems.push(`no setting “${name}”`);
    else if ("<>".includes(sign[0]) && (wanted.length > 1 || wanted[0] === "" || isNaN(wanted[0])))
      problems.push(`“${word}”: ${sign} takes a number`);
    else if (rest === "") problems.push(`“${word}”: no value yet`);
    else tests.push((job) => {
      const at = setting.of[job];
      return TESTS[sign](at === null ? null : setting.values[at], wanted);
    });
  }
  return { tests, problems };
};

const listeners = [];

const applyFilter = (line) => {
  const { tests, problems } = understood(line);
  shown = new Set([...data.jobs.keys()].filter((job) => tests.every((test) => test(job))));
  const count = document.getElementById("count");
  if (count) {
    const all = data.jobs.length;
    count.textContent = problems.length
      ? problems.join("; ")
      : shown.size === all ? `all ${all} jobs` : `${shown.size} of ${all} jobs`;
    count.classList.toggle("problem", problems.length > 0);
    document.getElementById("clear").hidden = !line;
  }
  for (const item of document.querySelectorAll("[data-job]"))
    item.hidden = !shows(item.dataset.job.split(" ").map(Number));
  redraw();
  for (const listener of listeners) listener();
};

/** The words of the line without those that choose values of the setting. */
const without = (setting) => (filterInput.value.match(WORD) ?? []).filter((word) => {
  const [, name, sign] = word.match(TERM) ?? [];
  return !(sign === "=" && settingNamed(name) === setting);
});

const chosenOf = (setting) => {
  for (const word of filterInput.value.match(WORD) ?? []) {
    const [, name, sign, rest] = word.match(TERM) ?? [];
    if (sign === "=" && settingNamed(name) === setting) return (rest.match(VALUE) ?? []).map(unquoted);
  }
  return null;
};

const facet = (setting) => {
  const counts = setting.values.map((_, at) => setting.of.filter((of) => of === at).length);
  const boxes = setting.values.map((value, at) => {
    const input = element("input", { type: "checkbox", value });
    return element("label", {}, input, ` ${value} `,
      element("span", { className: "muted" }, String(counts[at])));
  });
  const state = element("span", { className: "state" });
  const made = element("details", { className: "facet" },
    element("summary", {}, `${setting.short} `, state),
    element("fieldset", {}, element("legend", { className: "hidden" }, setting.name), ...boxes));
  const inputs = [...made.querySelectorAll("input")];
  made.addEventListener("change", () => {
    const checked = inputs.filter((input) => input.checked).map((input) => quoted(input.value));
    filterInput.value = [...without(setting), ...(checked.length ? [`${setting.short}=${checked}`] : [])].join(" ");
    filterInput.dispatchEvent(new Event("input"));
  });
  made.follow = () => {
    const chosen = chosenOf(setting);
    for (const input of inputs)
      input.checked = chosen !== null && chosen.some((one) => same(input.value, one));
    const checked = inputs.filter((input) => input.checked).map((input) => input.value);
    state.textContent = checked.length ? (checked.length > 2 ? `${checked.length} chosen` : checked.join(", ")) : "any";
    made.classList.toggle("chosen", checked.length > 0);
  };
  return made;
};

const MOST_FACETS = 8;

if (filterInput) {
  const holder = document.getElementById("facets");
  const several = data.settings.filter((setting) => setting.values.length > 1);
  const first = several.filter((setting) => setting.varied && setting.values.length <= 40);
  const more = document.getElementById("more-settings");
  const add = (setting) => {
    const made = facet(setting);
    more.parentElement.before(made);
    made.follow();
    return made;
  };
  first.slice(0, MOST_FACETS).forEach(add);
  const rest = data.settings.filter((setting) => !first.slice(0, MOST_FACETS).includes(setting));
  for (const [label, settings] of [
    ["differ", rest.filter((setting) => setting.values.length > 1)],
    ["are the same in all jobs", rest.filter((setting) => setting.values.length <= 1)],
  ]) {
    if (!settings.length) continue;
    more.append(element("optgroup", { label },
      ...settings.map((setting) => element("option", { value: setting.name }, setting.short))));
  }
  document.getElementById("add-setting").addEventListener("click", (event) => {
    // It opens a list, which a click elsewhere closes.
    event.stopPropagation();
    if (!more.value) return;
    const made = add(settingsOf.get(more.value));
    more.selectedOptions[0].remove();
    more.selectedIndex = 0;
    made.open = true;
    made.querySelector("summary").focus();
  });
  let waiting;
  filterInput.addEventListener("input", () => {
    for (const made of holder.querySelectorAll(".facet")) made.follow();
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      applyFilter(filterInput.value);
      remember({ q: filterInput.value });
    }, 60);
  });
  document.getElementById("clear").addEventListener("click", () => {
    filterInput.value = "";
    filterInput.dispatchEvent(new Event("input"));
    filterInput.focus();
  });
  // One list is open at a time, and a click elsewhere closes it.
  document.addEventListener("click", (event) => {
    for (const made of holder.querySelectorAll(".facet[open]"))
      if (!made.contains(event.target)) made.open = false;
  });
  holder.addEventListener("keydown", (event) => {
    const made = event.target.closest(".facet[open]");
    if (event.key !== "Escape" || !made) return;
    made.open = false;
    made.querySelector("summary").focus();
  });
}

// What the reader chose is in the address, which can be sent to a colleague.

const remembered = () => new URLSearchParams(location.hash.slice(1));

const remember = (changes) => {
  const all = remembered();
  for (const [key, value] of Object.entries(changes))
    if (value) all.set(key, value);
    else all.delete(key);
  for (const key of [...all.keys()]) if (!["q", "x", "y", "job"].includes(key)) all.delete(key);
  const text = all.toString();
  try {
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  } catch {
    location.hash = text;
  }
};
