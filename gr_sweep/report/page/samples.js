// What the models write: the same prompt for every job, the variants of a job side by side.

const FIRST_JOBS = 6;
const NAMES = { full: "full model", removed: "without", kept: "only" };
const ENDS = { length: "", end_of_text: " ends here", not_finite: "not a number: the model diverged" };

const commonLength = (first, second) => {
  let at = 0;
  while (at < first.length && first[at] === second[at]) at += 1;
  // Not between the halves of a character.
  return /[\uD800-\uDBFF]/.test(first[at - 1] ?? "") ? at - 1 : at;
};

/** Small models of code write many empty lines: they would be all that one sees. */
const condensed = (text) => text.replace(/\n(?:[ \t]*\n){2,}/g, (blank) => `\n… ${blank.split("\n").length - 2} empty lines\n`);

const isUnder = (domain, part) => domain === part || domain.startsWith(`${part}/`);

/** A prompt and how its document goes on. */
const passage = ({ domain, prompt, reference }) => element("div", { className: "passage" },
  element("h4", {}, `${domain}: a held-out document`),
  element("pre", {}, element("b", {}, prompt), element("span", { className: "same" }, reference)));

/** All variants of a job's model after one prompt. */
const textsOf = ({ prompt, samples }) => {
  const full = condensed(samples.find(([kind]) => kind === "full")?.[2] ?? "");
  const { domain } = data.texts.prompts[prompt];
  const removed = samples.filter(([kind]) => kind === "removed").length;
  const isAligned = removed > 0 && removed === samples.filter(([kind]) => kind === "kept").length && removed < 5;
  const grid = element("div", { className: isAligned ? "texts wide" : "texts" });
  if (isAligned) {
    grid.style.setProperty("--columns", removed + 1);
    grid.tabIndex = 0;
    grid.setAttribute("role", "region");
    grid.setAttribute("aria-label", "samples");
  }
  for (const [kind, part, whole, end] of samples) {
    const text = condensed(whole);
    const common = kind === "full" ? 0 : commonLength(text, full);
    const isOwn = part !== null && isUnder(domain, part);
    const head = element("h4", {}, kind === "full" ? element("b", {}, NAMES.full) : `${NAMES[kind]} `);
    if (part !== null) head.append(element("b", {}, part));
    if (isOwn) head.title = "the domain of this prompt";
    grid.append(element("div", { className: `text-of ${kind}${isOwn ? " own" : ""}` }, head,
      element("pre", {}, element("span", { className: "same" }, text.slice(0, common)), text.slice(common),
        element("i", { className: "same" }, ENDS[end] ?? ""))));
  }
  return grid;
};

const promptSelect = document.getElementById("prompt");
if (promptSelect) {
  const list = document.getElementById("texts"), more = document.getElementById("more-texts");
  let most = FIRST_JOBS;
  data.texts.prompts.forEach(({ domain, prompt }, at) => {
    const start = prompt.replace(/\s+/g, " ").trim();
    promptSelect.append(element("option", { value: at }, `${domain}: ${start.slice(0, 60)}${start.length > 60 ? "…" : ""}`));
  });
  const showTexts = () => {
    const chosen = Number(promptSelect.value);
    document.getElementById("prompt-text").replaceChildren(passage(data.texts.prompts[chosen]));
    const found = [...shown].flatMap((job) =>
      data.texts.of[job].filter(({ prompt }) => prompt === chosen).map((one) => [job, one]));
    // Those that a domain can be removed from first: they are what one compares.
    found.sort((a, b) => (b[1].samples.length > 1) - (a[1].samples.length > 1));
    list.replaceChildren(...found.slice(0, most).map(([job, one]) =>
      element("article", { className: "job-texts" }, element("h3", {}, jobLink(job)), textsOf(one))));
    if (!found.length) list.append(element("p", { className: "note" }, "No shown job has samples of this prompt here."));
    more.hidden = found.length <= most;
    more.textContent = `${found.length - most} more jobs`;
  };
  promptSelect.addEventListener("change", showTexts);
  more.addEventListener("click", () => { most += 2 * FIRST_JOBS; showTexts(); });
  listeners.push(() => { most = FIRST_JOBS; showTexts(); });
}
