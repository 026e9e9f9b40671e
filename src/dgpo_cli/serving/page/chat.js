"use strict";
// Everything shown is set as text: nothing that a model wrote or read ever becomes markup.
const $ = (id) => document.getElementById(id);
const KEPT = "dgpo.chat."; // one entry of localStorage for each question, so that two tabs do not write over each other
const MOST = 200;
const NO_ANSWER = {
  max_turns: "No answer: no turns were left.", max_tokens: "No answer: no tokens were left.",
  repeated_turn: "No answer: the model wrote the same step again.", loop: "No answer: the model went on repeating itself.",
};

function element(name, options, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options || {})) {
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else if (key === "click") made.addEventListener("click", value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const plural = (count, one) => `${count} ${one}${count === 1 ? "" : one.endsWith("h") ? "es" : "s"}`;

// --- what is kept in this browser ---

function kept() {
  const found = [];
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(KEPT)) continue;
    try {
      const entry = JSON.parse(localStorage.getItem(key));
      if (typeof entry.question === "string" && Array.isArray(entry.steps)) found.push(entry);
    } catch { /* written by something else */ }
  }
  return found.sort((a, b) => b.at - a.at);
}

function keep(entry) {
  for (const old of kept().slice(MOST - 1)) localStorage.removeItem(KEPT + old.id);
  for (;;) {
    try { localStorage.setItem(KEPT + entry.id, JSON.stringify(entry)); break; } catch {
      const oldest = kept().pop(); // there is no room: the oldest makes some
      if (!oldest || oldest.id === entry.id) break;
      localStorage.removeItem(KEPT + oldest.id);
    }
  }
  showList();
}

function showList() {
  const entries = kept();
  const shown = [...document.querySelectorAll("article")].pop(); // the last one is where the reader is
  $("none").hidden = entries.length > 0;
  $("forget").hidden = !entries.length;
  $("list").replaceChildren(...entries.map((entry) => element("li", {}, element("button", {
    type: "button", "aria-current": String(Boolean(shown) && shown.dataset.id === entry.id),
    click: () => { openOnly(entry); closePast(); },
  }, entry.question, element("small", { text: entry.answer || entry.problem || (entry.stopped ? "stopped" : "no answer") })))));
}

// --- one question and its answer ---

function highlighted(text, answer) {
  // The text with the answer marked, wherever it stands as it is written.
  const made = document.createDocumentFragment();
  const lower = text.toLowerCase(), wanted = (answer || "").toLowerCase();
  let place = 0;
  // Lower case may change the length of a text; then nothing is marked rather than the wrong place.
  while (wanted && lower.length === text.length) {
    const found = lower.indexOf(wanted, place);
    if (found < 0) break;
    made.append(text.slice(place, found), element("mark", { text: text.slice(found, found + wanted.length) }));
    place = found + wanted.length;
  }
  made.append(text.slice(place));
  return made;
}

class View {
  constructor(entry) {
    this.entry = entry;
    this.inside = element("div", { class: "inside" });
    this.summary = element("summary");
    this.steps = element("details", { class: "steps" }, this.summary, this.inside);
    this.end = element("div");
    this.node = element("article", { "data-id": entry.id }, element("p", { class: "asked", text: entry.question }), this.steps, this.end);
    this.shown = [];
  }

  show() {
    const { entry } = this;
    const searches = entry.steps.filter((step) => step.kind === "search").length;
    const seconds = entry.seconds ? ` · ${entry.seconds.toFixed(1)} s` : "";
    this.summary.textContent = entry.running ? (searches ? `Thinking, ${plural(searches, "search")}` : "Thinking")
      : `Thoughts, ${plural(searches, "search")}${seconds}`;
    this.steps.toggleAttribute("data-running", Boolean(entry.running));
    this.steps.hidden = !entry.running && !entry.steps.length;
    entry.steps.forEach((step, i) => {
      const state = JSON.stringify(step) + (step.kind === "search" && !entry.running ? entry.answer : "");
      if (this.shown[i] === state) return;
      const node = step.kind === "search" ? this.search(step, i) : element("p", { class: "thought", text: step.text.trim() });
      if (this.inside.children[i]) this.inside.children[i].replaceWith(node); else this.inside.append(node);
      this.shown[i] = state;
    });
    this.end.replaceChildren(...this.ending());
  }

  holding(passage, number) {
    return (this.entry.annotations || []).some((a) => a.passage && a.passage.id === passage.id && a.passage.search === number);
  }

  search(step) {
    const passages = step.passages || [];
    const found = step.error ? element("small", { text: ` failed: ${step.error}` })
      : step.passages ? element("small", { text: passages.length ? "" : " nothing found" }) : element("small", { text: " …" });
    return element("div", { class: "search" }, element("p", {}, "Search: ", element("b", { text: step.query }), found),
      ...passages.map((passage) => {
        const holds = this.holding(passage, step.index);
        return element("details", { class: "passage", "data-passage": `${step.index}/${passage.id}` }, element("summary", {},
          element("span", { class: "name" }, passage.title || passage.id, holds ? element("span", { class: "holds", text: "holds the answer" }) : null),
          element("span", { class: "score", text: passage.score.toFixed(2), title: "score" })),
        element("p", {}, holds ? highlighted(passage.text, this.entry.answer) : passage.text));
      }));
  }

  ending() {
    const { entry } = this, made = [];
    if (entry.problem) made.push(element("p", { class: "problem", role: "alert" }, entry.problem,
      element("button", { type: "button", text: "Ask again", click: () => ask(entry.question) })));
    else if (entry.stopped) made.push(element("p", { class: "note", text: "Stopped." }));
    else if (entry.answer) made.push(element("p", { class: "answer", text: entry.answer }));
    else if (!entry.running) made.push(element("p", { class: "note", text: NO_ANSWER[entry.reason] || "The answer is empty." }));
    const [first, ...others] = entry.annotations || [];
    if (first && first.passage) made.push(element("div", { class: "source" },
      element("b", {}, `in ${first.passage.title || first.passage.id} `,
        element("button", { type: "button", text: "show the passage", click: () => this.reveal(first.passage) })),
      element("span", {}, highlighted(first.passage.sentence || "", entry.answer)),
      others.length ? element("small", { class: "note", text: ` and in ${plural(others.length, "other passage")}` }) : null));
    else if (entry.answer && !entry.running) made.push(element("p", { class: "note", text: "No passage that was found holds these words." }));
    return made;
  }

  reveal(passage) {
    this.steps.open = true;
    const node = this.inside.querySelector(`[data-passage="${CSS.escape(`${passage.search}/${passage.id}`)}"]`);
    if (!node) return;
    node.open = true;
    node.scrollIntoView({ block: "center" });
    node.querySelector("summary").focus();
  }
}

function openOnly(entry) {
  if (running) return;
  const view = new View(entry);
  view.show();
  $("welcome").hidden = true;
  for (const node of $("thread").querySelectorAll("article")) node.remove();
  $("thread").append(view.node);
  showList();
}

// --- asking ---

let running = null; // the AbortController of the question that is being answered
let token = "";
try { token = sessionStorage.getItem("dgpo.token") || ""; } catch { /* the browser keeps nothing */ }

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

async function failure(reply) {
  let cause = `HTTP ${reply.status}`;
  try { cause = (await reply.json()).error.message; } catch { /* no JSON */ }
  if (reply.status === 401) { $("secret").hidden = false; $("token").focus(); }
  return new Error(cause);
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
  throw new Error("the server ended before the answer did");
}

function take(entry, chunk) {
  if (chunk.error) throw new Error(chunk.error.message);
  const choice = chunk.choices[0];
  if (!choice) return;
  const { delta } = choice;
  if (delta.searches) {
    for (const part of delta.searches) {
      const known = entry.steps.find((step) => step.kind === "search" && step.index === part.index);
      if (known) Object.assign(known, part); else entry.steps.push({ kind: "search", ...part });
    }
  } else if (delta.reasoning_content) {
    const last = entry.steps[entry.steps.length - 1];
    if (last && last.kind === "thought") last.text += delta.reasoning_content;
    else if (delta.reasoning_content.trim()) entry.steps.push({ kind: "thought", text: delta.reasoning_content });
  }
  if (delta.content) entry.answer += delta.content;
  if (delta.annotations) entry.annotations = delta.annotations;
  if (choice.stop_reason) entry.reason = choice.stop_reason;
}

async function ask(question) {
  if (running || !question.trim()) return;
  const control = running = new AbortController();
  const entry = { id: crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`, at: Date.now(), question: question.trim(),
    steps: [], answer: "", annotations: [], running: true };
  const view = new View(entry), thread = $("thread");
  $("welcome").hidden = true;
  thread.append(view.node);
  view.steps.open = true;
  view.show();
  busy();
  const follow = () => { thread.scrollTop = thread.scrollHeight; };
  follow();
  try {
    const reply = await fetch("v1/chat/completions", {
      method: "POST", signal: control.signal, headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify({ messages: [{ role: "user", content: entry.question }], stream: true }),
    });
    if (!reply.ok) throw await failure(reply);
    for await (const text of events(reply)) {
      if (text === "[DONE]") break;
      const near = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80;
      take(entry, JSON.parse(text));
      view.show();
      if (near) follow();
    }
  } catch (error) {
    if (control.signal.aborted) entry.stopped = true;
    else entry.problem = error instanceof TypeError ? "The server cannot be reached." : `${error.message}.`.replace(/\.\.$/, ".");
  }
  entry.running = false;
  entry.seconds = (Date.now() - entry.at) / 1000;
  running = null;
  if (!entry.problem && !entry.stopped) view.steps.open = false;
  view.show();
  follow();
  busy();
  keep(entry);
}

function busy() {
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  if (!running) $("question").focus();
}

// --- the page ---

function closePast() {
  $("past").removeAttribute("data-open");
  $("toggle").setAttribute("aria-expanded", "false");
}

function fit() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

function submit() {
  const box = $("question");
  if (running) return;
  if (!$("secret").hidden && $("token").value) {
    token = $("token").value.trim();
    try { sessionStorage.setItem("dgpo.token", token); } catch { /* for this page only, then */ }
    $("secret").hidden = true;
    about();
  }
  const question = box.value;
  if (!question.trim()) return;
  box.value = "";
  fit();
  ask(question);
}

async function about() {
  try {
    const reply = await fetch("v1/models", { headers: headers() });
    if (!reply.ok) throw await failure(reply);
    const model = (await reply.json()).data[0];
    $("model").textContent = model.id;
    document.title = `dgpo · ${model.id}`;
    $("examples").replaceChildren(...(model.agent.examples || []).map((text) => element("button", { type: "button", text, click: () => ask(text) })));
    const health = await (await fetch("health", { headers: headers() })).json();
    const count = health.index && health.index.passages;
    $("corpus").textContent = health.status !== "ok" ? `the search fails: ${health.detail || "see the server"}`
      : count ? `${count.toLocaleString("en")} passages` : "";
  } catch (error) {
    $("corpus").textContent = error.message;
  }
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("stop").addEventListener("click", () => running && running.abort());
$("question").addEventListener("input", fit);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  else if (event.key === "ArrowUp" && !$("question").value) {
    const [last] = kept();
    if (last) { event.preventDefault(); $("question").value = last.question; fit(); }
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { if (running) running.abort(); closePast(); }
  else if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) { event.preventDefault(); $("question").focus(); }
});
$("toggle").addEventListener("click", () => {
  const open = $("past").toggleAttribute("data-open");
  $("toggle").setAttribute("aria-expanded", String(open));
});
$("fresh").addEventListener("click", () => {
  if (running) return;
  for (const node of $("thread").querySelectorAll("article")) node.remove();
  $("welcome").hidden = false;
  showList();
  $("question").focus();
});
$("forget").addEventListener("click", () => {
  for (const entry of kept()) localStorage.removeItem(KEPT + entry.id);
  showList();
});
window.addEventListener("storage", showList);
showList();
about();
$("question").focus();
