
// --- following runs at work ---

const POLL_MS = 2000, UNSEEN_MS = 15000;  // between two questions to the server, and while the page is in the background
const fetched = new Map();  // by number of a run: its revision, curves and episodes
let lastTold = "";

async function ask(place) {
  const reply = await fetch(place, { cache: "no-store" });
  if (!reply.ok) throw new Error((await reply.json().catch(() => ({}))).detail ?? `the server answers ${reply.status}`);
  return reply.json();
}

function taken(run, before) {  // an episode that did not change stays the one that is read
  const known = new Map((before?.episodes ?? []).map((episode) => [episode.key, episode]));
  run.episodes = run.episodes.map((episode) => {
    episode.told = JSON.stringify(episode);
    return known.get(episode.key)?.told === episode.told ? known.get(episode.key) : episode;
  });
  return run;
}

function merged(runs) {
  const questions = new Map();
  runs.forEach((run, place) => {
    for (const { attempt, key, bench, text, answers, hops } of fetched.get(run.number).episodes) {
      if (!questions.has(key)) questions.set(key, { key, bench, text, answers, hops, attempts: {} });
      questions.get(key).attempts[place] = attempt;
    }
  });
  return [...questions.values()].reverse();  // the newest first
}

function showWork() {
  $("at-work").replaceChildren(...content.runs.map((run, place) => [run, place]).filter(([run]) => run.status === "running").map(([run, place]) => {
    const line = element("p", {}, dot(place), element("strong", { text: run.name }));
    if (run.total) line.append(element("progress", { value: String(run.step), max: String(run.total), "aria-label": `steps of ${run.name}` }));
    line.append([run.total ? `step ${run.step} of ${run.total}` : ` step ${run.step}`, run.left === null ? null : `about ${run.left} left`, run.line]
      .filter((part) => part).join(" · "));
    return line;
  }));
}

async function look() {
  const now = await ask("state");
  const chosen = ["run-a", "run-b"].map((id) => content.runs[$(id).value]?.number);
  let changed = now.runs.map((run) => run.number).join() !== content.runs.map((run) => run.number).join();
  for (const run of now.runs) {
    const before = fetched.get(run.number);
    if (before?.revision === run.revision) continue;
    fetched.set(run.number, taken(await ask(`runs/${run.number}`), before));
    changed = true;
  }
  for (const number of [...fetched.keys()]) if (!now.runs.some((run) => run.number === number)) fetched.delete(number);
  const told = JSON.stringify({ ...now, created: "" });
  Object.assign(content, now);
  if (told !== lastTold) { showRuns(); showWork(); }
  lastTold = told;
  if (!now.runs.length) $("warnings").replaceChildren(element("p", { class: "hint", text: `No runs below ${now.folder} yet. They appear here when they begin.` }));
  if (!changed) return;
  content.curves = now.runs.map((run) => fetched.get(run.number).curves);
  content.questions = merged(now.runs);
  showCurves();
  showNewEpisodes(chosen);
}

function showNewEpisodes([a, b]) {
  const place = (number) => content.runs.findIndex((run) => run.number === number);
  const reading = $("detail").contains(document.activeElement);
  if (state.current === 0 && !reading) state.current = -1;  // who reads the newest is shown the one that comes after it
  showEpisodes(false, (question) => attemptsOf(question).every((attempt, i) => attempt === state.drawn[i]));
  const atWork = content.runs.findLastIndex((run) => run.status === "running");
  const first = a === undefined ? atWork : place(a), second = b === undefined ? -1 : place(b);
  const wanted = [first < 0 ? $("run-a").value : String(first), second < 0 ? "" : String(second)];
  if (wanted[0] === $("run-a").value && wanted[1] === $("run-b").value) return;
  [$("run-a").value, $("run-b").value] = wanted;
  if ($("run-a").value === "") $("run-a").selectedIndex = 0;
  outcomes();
  update();
}

state.text = async (attempt, place) => {
  attempt.more = "asked";
  const { number } = content.runs[place];
  const question = state.shown[state.current];
  try {
    Object.assign(attempt, await ask(`runs/${number}/episode?key=${encodeURIComponent(question.key)}`), { more: false });
  } catch (error) {
    Object.assign(attempt, { more: false, problem: `Its text cannot be shown: ${error.message}.` });
  }
  if (state.shown[state.current] === question) showQuestion(question);
};

async function follow() {
  try {
    await look();
    $("live").textContent = `following, ${new Date().toLocaleTimeString()}`;
    $("live").className = "";
  } catch (error) {
    $("live").textContent = `not following: ${error.message}`;
    $("live").className = "lost";
  }
  setTimeout(follow, document.hidden ? UNSEEN_MS : POLL_MS);
}
follow();
