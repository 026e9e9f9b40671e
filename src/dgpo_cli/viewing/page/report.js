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
  target.replaceChildren(element("thead", {}, element("tr", {}, ...columns.map((text, i) =>
    element("th", { text, class: numeric[i] && i ? "number" : "" })))));
  target.append(element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell, i) => {
    const made = element("td", { class: numeric[i] && i ? "number" : "" });
    made.append(cell === null ? "–" : cell);
    return made;
  })))));
}

function showRuns() {
  $("made").textContent = `${content.version} · ${content.created}`;
  $("evaluations").replaceChildren();
  const named = (run) => element("span", { title: content.runs[run].path }, dot(run), content.runs[run].name);
  table($("run-table"), content.summary.columns, content.summary.rows.map((row, run) => [named(run), ...row]));
  const section = (found, rows) => {
    if (!found?.rows.length) return;
    const made = element("table");
    table(made, found.columns, rows(found.rows));
    $("evaluations").append(element("h3", { text: found.title }), element("div", { class: "scroll" }, made));
  };
  const ofRuns = (rows) => rows.map(([run, ...cells]) => [named(run), ...cells]);
  section(content.evaluations, ofRuns);
  section(content.selective, ofRuns);
  section(content.pairs, (rows) => rows);
  $("warnings").replaceChildren(...content.warnings.map((text) => element("p", { class: "note", text })));
}

// --- curves ---

const hidden = new Set();  // names of runs
const WIDTH = 440, HEIGHT = 234, LEFT = 46, RIGHT = 430, TOP = 8, BOTTOM = 198;

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function ticks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((width) => width >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

const figure = (x) => (x !== 0 && (Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3) ? x.toExponential(1) : String(Number(x.toPrecision(4))));

function scale(values, from, to) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low === 0 && high === 0) high = 1;
  if (low === high) { const room = Math.abs(low) / 10; low -= room; high += room; }
  return { low, high, at: (x) => Number((from + (to - from) * (x - low) / (high - low)).toFixed(1)) };
}

function chart(spec, places) {
  const curves = places.map((place) => [place, content.curves[place][spec.metric]]);
  const x = scale(curves.flatMap(([, curve]) => curve.each[0]), LEFT + 4, RIGHT);
  const y = scale(curves.flatMap(([, curve]) => curve.each[1]), BOTTOM, TOP);
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": spec.title });
  for (const value of ticks(y.low, y.high)) {
    picture.append(drawn("line", { x1: LEFT, x2: RIGHT, y1: y.at(value), y2: y.at(value), class: "grid" }),
      drawn("text", { x: LEFT - 6, y: y.at(value) + 4, "text-anchor": "end" }, figure(value)));
  }
  for (const value of ticks(x.low, x.high)) {
    if (Number.isInteger(value)) picture.append(drawn("text", { x: x.at(value), y: BOTTOM + 16, "text-anchor": "middle" }, figure(value)));
  }
  picture.append(drawn("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, "step"));
  for (const [place, curve] of curves) {
    const line = (points, style) => drawn("polyline", { points: points[0].map((step, i) => `${x.at(step)},${y.at(points[1][i])}`).join(" "),
      stroke: color(place), class: style });
    const group = drawn("g", { "data-run": String(place) });
    group.append(line(curve.each, curve.mean ? "thin" : "thick"));
    if (curve.mean) group.append(line(curve.mean, "thick"));
    else if (curve.each[0].length < 60) for (let i = 0; i < curve.each[0].length; i++) {
      group.append(drawn("circle", { cx: x.at(curve.each[0][i]), cy: y.at(curve.each[1][i]), r: 2.6, fill: color(place) }));
    }
    picture.append(group);
  }
  const read = element("output");
  const made = element("figure", { "data-metric": spec.metric }, element("figcaption", {}, element("span", { text: spec.title }), read), picture);
  made.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const step = x.low + (x.high - x.low) * ((event.clientX - box.left) / box.width * WIDTH - LEFT - 4) / (RIGHT - LEFT - 4);
    const near = (steps) => steps.reduce((best, other, i) => (Math.abs(other - step) < Math.abs(steps[best] - step) ? i : best), 0);
    read.replaceChildren(...curves.map(([place, curve]) => {
      const at = near(curve.each[0]);
      return element("span", {}, dot(place), `${figure(curve.each[1][at])} at ${curve.each[0][at]}`);
    }));
  });
  made.addEventListener("pointerleave", () => read.replaceChildren());
  return made;
}

function drawCurves() {
  for (const [target, main] of [["charts", true], ["more-charts", false]]) {
    const made = [];
    for (const spec of content.charts.filter((spec) => spec.main === main)) {
      const places = content.runs.map((_, i) => i).filter((i) => !hidden.has(content.runs[i].name) && content.curves[i][spec.metric]);
      if (places.length) made.push(chart(spec, places));
    }
    $(target).replaceChildren(...made);
  }
  $("more-curves").hidden = !content.charts.some((spec) => !spec.main);
}

function showCurves() {
  const trained = content.runs.map((run, i) => [run, i]).filter(([run]) => run.logged);
  $("curves").hidden = !trained.length;
  $("curve-legend").replaceChildren(...trained.map(([run, place]) => {
    const button = element("button", { type: "button", "aria-pressed": String(!hidden.has(run.name)) }, dot(place), run.name);
    button.addEventListener("click", () => {
      if (!hidden.delete(run.name)) hidden.add(run.name);
      button.setAttribute("aria-pressed", String(!hidden.has(run.name)));
      drawCurves();
    });
    return button;
  }));
  drawCurves();
}

// --- episodes ---

// `drawn` are the attempts that can be read; `text` gets what one of them lacks, where it came without its text.
const state = { shown: [], current: -1, drawn: [], text: null };

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

const attemptsOf = (question) => chosenRuns().map((run) => question.attempts[run]);

function update(event, same = () => false) {
  const before = state.shown[state.current]?.key;
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
  select(Math.max(0, state.shown.findIndex((question) => question.key === before)), false, same);
}

function select(place, scroll = true, same = () => false) {
  if (!state.shown.length) return;
  state.current = Math.min(Math.max(place, 0), state.shown.length - 1);
  [...$("list").querySelectorAll("button")].forEach((button, i) => {
    if (i === state.current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
  const row = $("list").children[state.current];
  if (scroll) $("list").scrollTop = row.offsetTop - $("list").clientHeight / 2;
  if (!same(state.shown[state.current])) showQuestion(state.shown[state.current]);
}

function showQuestion(question) {
  state.drawn = attemptsOf(question);
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
  if (attempt.more === true) state.text(attempt, run);
  if (attempt.more) card.append(element("p", { class: "hint", text: "Reading its text …" }));
  if (attempt.problem) card.append(element("p", { class: "note", text: attempt.problem }));
  if (!attempt.steps.length) attempt.searches.forEach((search) => card.append(hitList(search)));
  const shades = shadesOf(attempt);
  if (shades.names.length) card.append(shadeBar(shades));
  for (const step of attempt.steps) card.append(stepBlock(step, attempt.searches, shades));
  return card;
}

// --- tokens ---

const VALUES = { advantages: "advantage", kl: "KL to the teacher", logprobs: "log-probability", rewards: "reward",
  teacher_logprobs: "teacher's log-probability", reference_kl: "KL to the reference", reference_logprobs: "reference's log-probability",
  returns: "return", values: "critic's value" };
let shade = null;  // the value that tokens are coloured by; "" is none, null the first that there is

function shadesOf(attempt) {
  const stretches = attempt.steps.filter((step) => step.values).map((step) => step.values);
  const known = new Set(stretches.flatMap((values) => Object.keys(values)));
  const names = [...Object.keys(VALUES).filter((name) => known.has(name)), ...[...known].filter((name) => !(name in VALUES)).sort()];
  const name = shade === null || (shade !== "" && !known.has(shade)) ? names[0] ?? "" : shade;
  const most = Math.max(1e-12, ...stretches.flatMap((values) => (values[name] || []).map((value) => Math.abs(value ?? 0))));
  return { names, name, most };
}

function shadeBar(shades) {
  const choice = element("select", { class: "shade", "aria-label": "What tokens are coloured by" });
  fill(choice, [...shades.names.map((name) => [name, VALUES[name] ?? name]), ["", "nothing"]]);
  choice.value = shades.name;
  choice.addEventListener("change", () => { shade = choice.value; showQuestion(state.shown[state.current]); $("detail").querySelector(".shade").focus(); });
  const key = shades.name === "" ? null : element("span", { class: "key" }, element("i", { class: "token below" }), figure(-shades.most),
    element("i", { class: "token above" }), figure(shades.most));
  return element("div", { class: "shades" }, element("label", {}, "Tokens by ", choice), key,
    element("output", { class: "reading", text: "Point at a token, or use Tab and the arrow keys." }));
}

function tokens(step, shades) {
  const made = element("pre");
  const spans = step.pieces.map((piece, place) => {
    const value = step.values[shades.name]?.[place] ?? 0;
    const span = element("span", { class: `token ${value < 0 ? "below" : "above"}${piece === "" ? " empty" : ""}`, text: piece === "" ? "·" : piece,
      tabindex: place === 0 ? "0" : "-1" });
    span.style.setProperty("--share", `${Math.round(85 * Math.abs(value) / shades.most)}%`);
    return span;
  });
  const read = (event) => {
    const place = spans.indexOf(event.target);
    if (place < 0) return;
    const values = shades.names.filter((name) => (step.values[name]?.[place] ?? null) !== null)
      .map((name) => [VALUES[name] ?? name, step.values[name][place]]);
    const chance = step.values.logprobs?.[place] ?? null;
    event.target.closest(".attempt").querySelector(".reading").replaceChildren(
      element("b", { text: JSON.stringify(step.pieces[place]) }), ...values.map(([name, value]) => element("span", { text: `${name} ${figure(value)}` })),
      ...(chance === null ? [] : [element("span", { text: `probability ${(100 * Math.exp(chance)).toFixed(1)} %` })]));
  };
  made.addEventListener("pointerover", read);
  made.addEventListener("focusin", read);
  made.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way) return;
    event.stopPropagation();  // these keys go to another question elsewhere
    const all = [...event.target.closest(".attempt").querySelectorAll(".token")];
    const next = all[all.indexOf(event.target) + way];
    if (!next) return;
    if (next.parentNode === made) { event.target.tabIndex = -1; next.tabIndex = 0; }
    next.focus();
  });
  made.append(...spans);
  return made;
}

const NAMES = { prompt: "prompt", think: "model", search: "model searches", answer: "model answers", result: "results", correction: "correction" };

function stepBlock(step, searches, shades) {
  const wrote = ["think", "search", "answer"].includes(step.kind);
  const block = element("div", { class: `step ${wrote ? "wrote" : "read"}` },
    element("div", { class: "label", text: `${NAMES[step.kind]} · ${step.tokens} token${step.tokens === 1 ? "" : "s"}` }),
    step.pieces && shades.name !== "" && !$("search").value.trim() ? tokens(step, shades) : highlighted(step.text));
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

function keep(select, options) {
  const before = select.value;
  fill(select, options);
  if (options.some(([value]) => value === before)) select.value = before;
}

function showEpisodes(first, same) {
  const withEpisodes = content.runs.map((_, i) => i).filter((i) => content.questions.some((q) => i in q.attempts));
  $("episodes").hidden = !withEpisodes.length;
  if (!withEpisodes.length) return;
  const options = withEpisodes.map((run) => [String(run), content.runs[run].name]);
  keep($("run-a"), options);
  keep($("run-b"), [["", "no other run"], ...options]);
  if (first && withEpisodes.length > 1) $("run-b").value = String(withEpisodes[1]);
  const sets = [...new Set(content.questions.map((question) => question.bench))];
  keep($("benchmark"), [["", "all question sets"], ...sets.map((name) => [name, name])]);
  outcomes();
  update(null, same);
}

function listen() {
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
}

listen();
if (content.runs.length) { showRuns(); showCurves(); showEpisodes(true); }
