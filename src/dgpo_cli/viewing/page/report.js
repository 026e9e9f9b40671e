"use strict";
// Everything shown is set as text: no data ever becomes markup.
const content = JSON.parse(document.getElementById("content").textContent);
const $ = (id) => document.getElementById(id);

function element(name, options, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options || {})) {
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const color = (run) => content.colors[run % content.colors.length];
function dot(run) {
  const made = element("span", { class: "dot" });
  made.style.background = color(run);
  return made;
}

// --- runs ---

function table(target, columns, rows) {
  const numeric = columns.map((_, i) => rows.some((row) => typeof row[i] === "number" || /^[-+]?[\d.]/.test(String(row[i]))));
  target.append(element("thead", {}, element("tr", {}, ...columns.map((text, i) =>
    element("th", { text, class: numeric[i] && i ? "number" : "" })))));
  target.append(element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell, i) => {
    const made = element("td", { class: numeric[i] && i ? "number" : "" });
    made.append(cell === null ? "–" : cell);
    return made;
  })))));
}

function showRuns() {
  $("made").textContent = `${content.version} · ${content.created}`;
  const named = (run) => element("span", { title: content.runs[run].path }, dot(run), content.runs[run].name);
  table($("run-table"), content.summary.columns, content.summary.rows.map((row, run) => [named(run), ...row]));
  if (content.evaluations.rows.length) {
    $("evaluations").append(element("h3", { text: "Evaluations" }));
    const made = element("table");
    table(made, content.evaluations.columns, content.evaluations.rows.map(([run, ...cells]) => [named(run), ...cells]));
    $("evaluations").append(element("div", { class: "scroll" }, made));
  }
  if (content.pairs.rows.length) {
    $("evaluations").append(element("h3", { text: "Two runs on the same questions" }));
    const made = element("table");
    table(made, content.pairs.columns, content.pairs.rows);
    $("evaluations").append(element("div", { class: "scroll" }, made));
  }
  for (const text of content.warnings) $("warnings").append(element("p", { class: "note", text }));
}

// --- curves ---

function showCurves() {
  const trained = content.runs.map((run, i) => [run, i]).filter(([run]) => run.logged);
  if (!trained.length) { $("curves").hidden = true; return; }
  if (!document.querySelector("#more-curves figure")) $("more-curves").hidden = true;
  for (const [run, place] of trained) {
    const button = element("button", { type: "button", "aria-pressed": "true" }, dot(place), run.name);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const curve of document.querySelectorAll(`[id^="curve-${place}-"]`)) curve.classList.toggle("off", !shown);
    });
    $("curve-legend").append(button);
  }
}

// --- episodes ---

const withEpisodes = content.runs.map((_, i) => i).filter((i) => content.questions.some((q) => i in q.attempts));
const state = { shown: [], current: -1 };

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value, text })));
}

function outcomes() {
  const two = $("run-b").value !== "";
  const kept = $("outcome").value;
  fill($("outcome"), [
    ["all", "right or wrong"], ["right", "A right"], ["wrong", "A wrong"],
    ...(two ? [["differ", "A and B differ"], ["only-a", "only A right"], ["only-b", "only B right"], ["both", "both right"],
      ["neither", "both wrong"]] : []),
  ]);
  if ([...$("outcome").options].some((option) => option.value === kept)) $("outcome").value = kept;
}

function haystack(question) {
  if (question.text_index === undefined) {
    const parts = [question.key, question.text, ...question.answers];
    for (const attempt of Object.values(question.attempts)) {
      parts.push(attempt.answer || "", ...attempt.searches.map((search) => search.query), ...attempt.steps.map((step) => step.text));
    }
    question.text_index = parts.join("\n").toLowerCase();
  }
  return question.text_index;
}

function matches(question) {
  const a = question.attempts[$("run-a").value];
  const b = $("run-b").value === "" ? null : question.attempts[$("run-b").value];
  if (!a || b === undefined) return false;
  if ($("benchmark").value && question.bench !== $("benchmark").value) return false;
  const words = $("search").value.toLowerCase().trim();
  if (words && !haystack(question).includes(words)) return false;
  switch ($("outcome").value) {
    case "right": return a.correct;
    case "wrong": return !a.correct;
    case "differ": return a.correct !== b.correct;
    case "only-a": return a.correct && !b.correct;
    case "only-b": return b.correct && !a.correct;
    case "both": return a.correct && b.correct;
    case "neither": return !a.correct && !b.correct;
    default: return true;
  }
}

function chosenRuns() {
  return [$("run-a").value, $("run-b").value].filter((value) => value !== "");
}

function markOf(attempt) {
  return element("span", { class: `mark ${attempt.correct ? "right" : "wrong"}`, text: attempt.correct ? "✓" : "✗",
    title: attempt.correct ? "right" : "wrong" });
}

function update() {
  const before = state.shown[state.current];
  state.shown = content.questions.filter(matches);
  $("count").textContent = `${state.shown.length} of ${content.questions.length}`;
  $("list").replaceChildren(...state.shown.map((question, place) => {
    const marks = element("span", { class: "marks" }, ...chosenRuns().map((run) => markOf(question.attempts[run])));
    const button = element("button", { type: "button" }, marks, element("span", { text: question.text }));
    button.addEventListener("click", () => select(place));
    return element("li", {}, button);
  }));
  if (!state.shown.length) {
    $("list").append(element("li", { class: "empty", text: "No episode matches these filters." }));
    $("detail").replaceChildren();
    state.current = -1;
    return;
  }
  select(Math.max(0, state.shown.indexOf(before)), false);
}

function select(place, scroll = true) {
  if (!state.shown.length) return;
  state.current = Math.min(Math.max(place, 0), state.shown.length - 1);
  [...$("list").querySelectorAll("button")].forEach((button, i) => {
    if (i === state.current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
  const row = $("list").children[state.current];
  if (scroll) $("list").scrollTop = row.offsetTop - $("list").clientHeight / 2;
  showQuestion(state.shown[state.current]);
}

function showQuestion(question) {
  const facts = [question.bench, question.hops === null ? null : `${question.hops} hop${question.hops === 1 ? "" : "s"}`, question.key];
  const gold = element("p", { class: "meta" }, "Gold: ", element("strong", { text: question.answers.join(" · ") }),
    ` — ${facts.filter((fact) => fact !== null).join(" · ")}`);
  const legend = element("div", { class: "legend" },
    element("span", {}, element("i", { class: "wrote" }), "written by the model (the tokens that training uses)"),
    element("span", {}, element("i", { class: "read" }), "read: prompt, results, corrections (never trained on)"));
  const attempts = element("div", { class: "attempts" }, ...chosenRuns().map((run) => attemptCard(question.attempts[run], Number(run))));
  $("detail").replaceChildren(element("h3", { text: question.text }), gold, legend, attempts);
}

function attemptCard(attempt, run) {
  const verdict = attempt.correct ? "right" : "wrong";
  const header = element("header", {}, element("strong", {}, dot(run), content.runs[run].name),
    element("span", { class: `badge ${verdict}`, text: verdict }));
  const answer = element("p", { class: "answer" }, "Answer: ",
    attempt.answer === null ? element("em", { text: `none (ended: ${attempt.stop})` }) : element("strong", { text: attempt.answer }));
  const parts = Object.entries(attempt.parts).map(([name, value]) => `${name} ${Number(value.toFixed(3))}`);
  const facts = element("p", { class: "facts", text: [
    attempt.cause === null ? null : attempt.cause.replaceAll("_", " "),
    `reward ${Number(attempt.reward.toFixed(3))}${parts.length ? ` (${parts.join(", ")})` : ""}`, `F1 ${(100 * attempt.f1).toFixed(1)} %`,
    `${attempt.searches.length} search${attempt.searches.length === 1 ? "" : "es"}`, `${attempt.written} tokens written, ${attempt.read} read`,
    attempt.invalid ? `${attempt.invalid} without an action` : null,
    attempt.truncated ? `${attempt.truncated} results cut` : null,
  ].filter((fact) => fact !== null).join(" · ") });
  const card = element("section", { class: "attempt", "data-run": String(run) }, header, answer, facts);
  if (!attempt.steps.length) attempt.searches.forEach((search) => card.append(hitList(search)));
  for (const step of attempt.steps) card.append(stepBlock(step, attempt.searches));
  return card;
}

const NAMES = { prompt: "prompt", think: "model", search: "model searches", answer: "model answers", result: "results", correction: "correction" };

function stepBlock(step, searches) {
  const wrote = ["think", "search", "answer"].includes(step.kind);
  const block = element("div", { class: `step ${wrote ? "wrote" : "read"}` },
    element("div", { class: "label", text: `${NAMES[step.kind]} · ${step.tokens} token${step.tokens === 1 ? "" : "s"}` }),
    highlighted(step.text));
  if (step.search !== null) block.append(hitList(searches[step.search]));
  return block;
}

function highlighted(text) {
  const made = element("pre");
  const words = $("search").value.toLowerCase().trim();
  const lower = text.toLowerCase();
  if (!words || lower.length !== text.length) { made.textContent = text; return made; }
  let start = 0;
  for (let at = lower.indexOf(words); at >= 0; at = lower.indexOf(words, start)) {
    made.append(text.slice(start, at), element("mark", { text: text.slice(at, at + words.length) }));
    start = at + words.length;
  }
  made.append(text.slice(start));
  return made;
}

function hitList(search) {
  const made = element("ol", { class: "hits", "aria-label": `results of ${search.query}` });
  if (search.error !== null) made.append(element("li", { text: `failed: ${search.error}` }));
  search.hits.forEach((hit, i) => {
    const title = element("span", { class: "title", title: hit.id }, hit.title);
    if (hit.gold) title.append(element("span", { class: "tag", text: "gold passage" }));
    if (hit.answer) title.append(element("span", { class: "tag", text: "holds the answer" }));
    made.append(element("li", {}, element("span", { class: "rank", text: String(i + 1) }), title,
      element("span", { class: "score", text: hit.score.toFixed(3) })));
  });
  return made;
}

function showEpisodes() {
  if (!withEpisodes.length) { $("episodes").hidden = true; return; }
  const options = withEpisodes.map((run) => [String(run), content.runs[run].name]);
  fill($("run-a"), options);
  fill($("run-b"), [["", "no other run"], ...options]);
  if (withEpisodes.length > 1) $("run-b").value = String(withEpisodes[1]);
  const sets = [...new Set(content.questions.map((question) => question.bench))];
  fill($("benchmark"), [["", "all question sets"], ...sets.map((name) => [name, name])]);
  outcomes();
  for (const id of ["benchmark", "run-a", "outcome"]) $(id).addEventListener("change", update);
  $("run-b").addEventListener("change", () => { outcomes(); update(); });
  $("search").addEventListener("input", update);
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
    if (event.key === "Escape" && typing) event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j" || event.key === "ArrowRight") select(state.current + 1);
    else if (event.key === "k" || event.key === "ArrowLeft") select(state.current - 1);
    else if (event.key === "/") { event.preventDefault(); $("search").focus(); }
  });
  update();
}

showRuns();
showCurves();
showEpisodes();
