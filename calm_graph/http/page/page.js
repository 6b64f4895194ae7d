// The playground: asks the server that gave it, through the same API that every client uses.

const $ = (id) => document.getElementById(id);

/** Make an element; text is text, never markup. */
function make(tag, fields = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name === "data") Object.assign(element.dataset, value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const kept = { // storage may be forbidden; then nothing is kept
  get(storage, name) { try { return window[storage].getItem(name); } catch { return null; } },
  set(storage, name, value) {
    try { value === null ? window[storage].removeItem(name) : window[storage].setItem(name, value); } catch { /* fine */ }
  },
};

const state = {
  key: kept.get("sessionStorage", "calm-key"),
  models: [],
  compositions: new Map(),
  model: null, // {id, max_model_len, ...}
  scales: new Map(), // model -> augmenter -> {on, value}
  turns: [],
  running: null, // {turn, abort}
  muted: new Set(), // augmenters that the colours leave out
  most: 0, // the strongest token, which the colours are measured by
};

const percent = (share) => `${share >= 0.1 || share === 0 ? Math.round(share * 100) : (share * 100).toFixed(1)}%`;
const seconds = (ms) => ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
const factor = (value) => `× ${Number(value).toFixed(2)}`;
const say = (text) => { $("status").textContent = text; };

// ---------------------------------------------------------------- the server

/** What went wrong, in words, and what can be done about it. */
class Failure extends Error {
  constructor(kind, title, text, further = {}) {
    super(text);
    Object.assign(this, { kind, title, text, wait_s: 0, request: null, ...further });
  }
}

const unreachable = () => new Failure(
  "unreachable", "The server cannot be reached",
  "It may have stopped, or the network is down. What you wrote is still here.",
);

async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body), credentials: "same-origin",
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  const { status } = response;
  let error = {};
  try { error = (await response.json()).error ?? {}; } catch { /* a proxy's page, not the server's answer */ }
  const message = error.message ?? `The answer was HTTP ${status}.`;
  const further = { request: response.headers.get("x-request-id"), code: error.code };
  if (status === 401) return new Failure("key", "This server asks for an API key", message, further);
  if (status === 429) {
    const asked = Number(response.headers.get("Retry-After"));
    return new Failure("busy", "The server is busy", message, { ...further, wait_s: Math.min(Math.max(asked || 1, 1), 600) });
  }
  if (status === 503) return new Failure("unready", "The server cannot answer now", message, further);
  if (status === 408 || status === 504) return new Failure("late", "The answer took too long", message, further);
  if (error.code === "context_length_exceeded") {
    return new Failure("long", "This does not fit into the context", message, further);
  }
  if (status < 500) return new Failure("refused", "The server refuses this request", message, further);
  return new Failure("broken", "Something failed in the server", message, further);
}

/** Yield the objects of a stream of server-sent events; a stream without its end is a failure. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const request = response.headers.get("x-request-id");
  const cut = (text) => new Failure("cut", "The answer was cut off", text, { request });
  let held = "";
  try {
    while (true) {
      let piece;
      try { piece = await reader.read(); } catch (error) {
        throw error.name === "AbortError" ? error : cut("The connection broke in the middle of the answer.");
      }
      if (piece.done) throw cut("The connection ended before the answer did.");
      held += piece.value;
      const parts = held.split(/\r?\n\r?\n/);
      held = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        let event;
        try { event = JSON.parse(data); } catch { throw cut("The server sent something that is no answer."); }
        if (event.error) throw cut(event.error.message ?? "The server gave up in the middle of the answer.");
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// ---------------------------------------------------------------- models, graph, augmenters

async function load() {
  $("notice-slot").replaceChildren();
  $("welcome").hidden = state.turns.length > 0;
  try {
    const [models, compositions] = await Promise.all(["v1/models", "v1/compositions"].map(async (path) => (await ask(path)).json()));
    state.models = models.data;
    state.compositions = new Map(compositions.data.map((each) => [each.id, each]));
    ask("version").then((answer) => answer.json()).then(({ version }) => { $("version").textContent = `calm_graph ${version}`; }, () => {});
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    $("welcome").hidden = true;
    if (failure.kind === "key") askForKey(load);
    else showFailure($("notice-slot"), failure, load);
    return;
  }
  $("key-section").hidden = !state.key;
  const wanted = state.model?.id;
  $("model").replaceChildren(...state.models.map(({ id }) => make("option", { value: id, textContent: id })));
  $("model").disabled = false;
  $("model").value = state.models.some(({ id }) => id === wanted) ? wanted : state.models[0].id;
  choose($("model").value);
  ready();
  if (!state.turns.length && !matchMedia("(pointer: coarse)").matches) $("prompt").focus();
}

const composition = () => state.compositions.get(state.model.id);
/** Whether the anchor reads conversations; all that is served together has one anchor. */
const converses = () => [...state.compositions.values()].some((each) => each.chat_template);

function scalesOf(id) {
  if (!state.scales.has(id)) {
    const declared = state.compositions.get(id)?.graph.composition?.augmenters ?? [];
    const names = state.compositions.get(id)?.augmenters ?? [];
    state.scales.set(id, new Map(names.map((name) => {
      const scale = declared.find((each) => each.name === name)?.scale ?? 1;
      return [name, { on: scale !== 0, value: scale || 1 }];
    })));
  }
  return state.scales.get(id);
}

const FALLBACK = ["#2f6fd0", "#d9660b", "#1f9467", "#b23a75", "#7656cc", "#a88600", "#12899b", "#8a5636"];

function colourOf(name) {
  for (const each of state.compositions.values()) {
    const index = each.augmenters.indexOf(name);
    const own = each.graph.colours?.[name] ?? (index < 0 ? null : FALLBACK[index % FALLBACK.length]);
    if (own) return `color-mix(in oklab, ${own} var(--own), white)`;
  }
  return "var(--soft)";
}

function choose(id) {
  state.model = state.models.find((model) => model.id === id);
  const found = composition();
  $("welcome-title").textContent = id;
  document.title = `${id} · calm_graph`;
  const about = [found?.graph.composition?.description];
  if (found) about.push(`${found.anchor} reads ${found.augmenters.join(", ")}.`);
  else about.push("The anchor alone, without augmenters.");
  about.push(converses()
    ? "Each message is read together with the conversation before it."
    : "It was never shown a conversation: each prompt stands alone, and is continued as it is.");
  $("welcome-text").textContent = about.filter(Boolean).join("\n");
  $("prompt").placeholder = converses() ? "Ask something" : "Begin a text for it to continue";
  // An answer without an end is no pleasure in a large context, and in a small one leaves no room for a conversation.
  const context = state.model.max_model_len ?? 4096;
  $("max-tokens").max = context;
  if (!$("max-tokens").dataset.touched) $("max-tokens").value = context > 1024 ? 512 : converses() ? Math.floor(context / 4) : "";
  drawGraph(found);
  drawAugmenters();
}

function drawGraph(found) {
  const text = found?.graph.svg;
  $("show-graph").hidden = !text;
  for (const place of [$("welcome-graph"), $("dialog-graph")]) place.replaceChildren();
  if (!text) return;
  // The policy of this page forbids styles inside the drawing; page.css has the same, in the page's colours.
  const plain = text.replace(/<style>[\s\S]*?<\/style>/g, "").replace(/ style="fill:(#\w+)"/g, ' fill="$1"');
  const drawing = new DOMParser().parseFromString(plain, "image/svg+xml").documentElement;
  if (drawing.localName !== "svg") return;
  const own = found.graph.colours ?? {};
  const named = new Map(Object.entries(own).map(([name, colour]) => [colour, name]));
  for (const element of drawing.querySelectorAll("[fill], [stroke]")) {
    for (const paint of ["fill", "stroke"]) {
      const colour = element.getAttribute(paint);
      if (named.has(colour)) element.style[paint] = `color-mix(in oklab, ${colour} var(--own), white)`;
    }
  }
  placeGraph(document.importNode(drawing, true));
}

/** One drawing, in the welcome or in the dialog: two would have the same ids. */
function placeGraph(drawing = document.querySelector(".graph svg")) {
  if (drawing) ($("graph-dialog").open ? $("dialog-graph") : $("welcome-graph")).replaceChildren(drawing);
  showScales();
}

function drawAugmenters() {
  const rows = [...scalesOf(state.model.id)].map(([name, scale], index) => {
    const row = make("div", { className: "augmenter", data: { name } });
    row.style.setProperty("--c", colourOf(name));
    const id = `augmenter-${index}`;
    const most = Math.max(2, 2 * Math.abs(scale.value));
    const toggle = make("input", { type: "checkbox", className: "switch", role: "switch", checked: scale.on, id });
    const slider = make("input", {
      type: "range", min: scale.value < 0 ? -most : 0, max: most, step: 0.05, value: scale.value,
      "aria-label": `Scale of ${name}`,
    });
    toggle.addEventListener("change", () => { scale.on = toggle.checked; showScales(); });
    slider.addEventListener("input", () => { scale.value = Number(slider.value); showScales(); });
    row.append(
      make("div", { className: "top" }, make("label", { htmlFor: id, title: name },
        make("span", { className: "dot" }), make("span", { className: "name", textContent: name }), toggle)),
      make("div", { className: "slide" }, slider, make("output")),
      make("div", { className: "wrote" }, make("i"), make("span")),
    );
    return row;
  });
  $("augmenters-section").hidden = !rows.length;
  $("augmenters").replaceChildren(...rows);
  showScales();
  showWrote();
  drawLegend();
}

function showScales() {
  if (!state.model) return;
  const scales = scalesOf(state.model.id);
  for (const row of $("augmenters").children) {
    const { on, value } = scales.get(row.dataset.name);
    row.classList.toggle("off", !on);
    const slider = row.querySelector("[type=range]");
    slider.disabled = !on;
    slider.setAttribute("aria-valuetext", factor(value));
    row.querySelector("output").textContent = on ? factor(value) : "off";
  }
  for (const arrow of document.querySelectorAll(".graph [data-augmenter]")) {
    const scale = scales.get(arrow.dataset.augmenter);
    const value = scale?.on ? Math.abs(scale.value) : 0;
    arrow.style.opacity = value ? Math.min(1, 0.4 + 0.6 * value) : 0.15; // of its head too
    arrow.style.strokeWidth = value ? 0.8 + 0.9 * Math.min(value, 3) : 1;
  }
}

// ---------------------------------------------------------------- the colours of tokens

const shownSum = (contributions) => Object.entries(contributions)
  .reduce((sum, [name, share]) => sum + (state.muted.has(name) ? 0 : share), 0);

function paint(element, contributions) {
  const shares = Object.entries(contributions).filter(([name, share]) => share > 0 && !state.muted.has(name));
  const sum = shares.reduce((total, [, share]) => total + share, 0);
  const strength = state.most ? Math.min(1, sum / state.most) : 0;
  if (!strength) {
    element.style.removeProperty("--wash");
    element.style.removeProperty("--bar");
    return;
  }
  const [first] = shares.reduce((best, each) => each[1] > best[1] ? each : best);
  element.style.setProperty("--wash", `color-mix(in srgb, ${colourOf(first)} calc(var(--tint) * ${strength.toFixed(3)}), transparent)`);
  let from = 0;
  const stops = shares.map(([name, share]) => {
    const to = from + 100 * share / sum;
    const stop = `color-mix(in srgb, ${colourOf(name)} 80%, transparent) ${from.toFixed(1)}% ${to.toFixed(1)}%`;
    from = to;
    return stop;
  });
  element.style.setProperty("--bar", `linear-gradient(90deg, ${stops.join(", ")})`);
}

const allTokens = () => state.turns.flatMap((turn) => turn.tokens);

function paintAll() {
  state.most = Math.max(0, ...allTokens().map((token) => shownSum(token.contributions)));
  for (const token of allTokens()) paint(token.element, token.contributions);
  $("ramp-max").textContent = percent(state.most);
}

/** Colour one more token; all of them, if it is the strongest so far. */
function paintNext(token) {
  if (shownSum(token.contributions) > state.most) paintAll();
  else paint(token.element, token.contributions);
}

function drawLegend() {
  const seen = new Set(allTokens().flatMap((token) => Object.keys(token.contributions)));
  for (const name of composition()?.augmenters ?? []) seen.add(name);
  $("legend").hidden = !allTokens().length || !seen.size;
  const before = [...document.querySelectorAll(".chips button")].map((chip) => chip.title).join("\n");
  if ([...seen].join("\n") === before) return;
  const common = commonStart([...seen]);
  document.querySelector(".chips").replaceChildren(...[...seen].map((name) => {
    const pressed = String(!state.muted.has(name));
    const chip = make("button", { type: "button", title: name, "aria-label": name, "aria-pressed": pressed },
      make("i", { className: "dot" }), make("span", { textContent: name.slice(common) }));
    chip.style.setProperty("--c", colourOf(name));
    chip.addEventListener("click", () => {
      if (!state.muted.delete(name)) state.muted.add(name);
      chip.setAttribute("aria-pressed", String(!state.muted.has(name)));
      paintAll();
    });
    return chip;
  }));
}

/** Return how many characters all names begin with, up to a hyphen or so: they tell nothing apart. */
function commonStart(names) {
  if (names.length < 2) return 0;
  let length = 0;
  while (length < names[0].length && names.every((name) => name[length] === names[0][length])) length += 1;
  return Math.max(...["-", "_", "/", " "].map((mark) => names[0].lastIndexOf(mark, length - 1))) + 1;
}

/** Say beside each slider what its augmenter wrote into the last answer. */
function showWrote() {
  const { tokens = [] } = state.turns.at(-1) ?? {};
  for (const row of $("augmenters").children) {
    const shares = tokens.map((token) => token.contributions[row.dataset.name] ?? 0);
    const mean = shares.length ? shares.reduce((sum, share) => sum + share, 0) / shares.length : 0;
    const wrote = row.querySelector(".wrote");
    wrote.hidden = !shares.length;
    wrote.style.setProperty("--share", `${Math.min(100, 100 * mean / (state.most || 1))}%`);
    wrote.querySelector("span").textContent = mean ? `wrote ${percent(mean)}` : "wrote nothing";
  }
}

const readable = (text) => JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"');

function showTip(token, { speak = false } = {}) {
  hideTip();
  token.element.classList.add("pointed");
  const entries = Object.entries(token.contributions).sort((a, b) => b[1] - a[1]);
  const lines = entries.map(([name, share]) => {
    const dot = make("span", { className: "dot" });
    dot.style.setProperty("--c", colourOf(name));
    return make("div", {}, dot, make("span", { textContent: name }), make("span", { textContent: percent(share) }));
  });
  const about = entries.length ? "of the anchor's stream, in length" : "No augmenter wrote into this token.";
  $("tip").replaceChildren(make("code", { textContent: readable(token.text) }), ...lines, make("p", { textContent: about }));
  $("tip").hidden = false;
  const at = token.element.getClientRects()[0] ?? token.element.getBoundingClientRect(), own = $("tip").getBoundingClientRect();
  const x = Math.min(Math.max(8, at.left + at.width / 2 - own.width / 2), innerWidth - own.width - 8);
  const y = at.top - own.height - 8 >= 8 ? at.top - own.height - 8 : at.bottom + 8;
  $("tip").style.translate = `${Math.round(x)}px ${Math.round(y)}px`;
  if (speak) {
    const told = entries.map(([name, share]) => `${name} ${percent(share)}`).join(", ");
    say(`${token.text.trim() || "space"}: ${told || "no augmenter"}`);
  }
}

function hideTip() {
  document.querySelector(".token.pointed")?.classList.remove("pointed");
  const shown = !$("tip").hidden;
  $("tip").hidden = true;
  return shown;
}

// ---------------------------------------------------------------- turns

function addTurn(prompt) {
  const turn = { prompt, text: "", tokens: [], failed: false };
  turn.answer = make("div", { className: "answer", tabIndex: 0, role: "group", "aria-label": "Answer" });
  turn.meta = make("div", { className: "meta" });
  turn.notice = make("div");
  turn.element = make("article", { className: "turn" },
    make("p", { className: "asked", textContent: prompt, data: { who: converses() ? "You" : "Prompt" } }),
    turn.answer, turn.notice, turn.meta);
  const tokenOf = (event) => turn.tokens.find((token) => token.element === event.target.closest?.(".token"));
  turn.answer.addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    if (token) showTip(token);
    else if (event.pointerType === "mouse") hideTip();
  });
  turn.answer.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hideTip(); });
  turn.answer.addEventListener("click", (event) => { const token = tokenOf(event); if (token) showTip(token); });
  turn.answer.addEventListener("blur", hideTip);
  turn.answer.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !turn.tokens.length) return;
    event.preventDefault();
    const at = turn.tokens.findIndex((token) => token.element.classList.contains("pointed"));
    const next = at < 0 ? (step > 0 ? 0 : turn.tokens.length - 1) : Math.min(Math.max(at + step, 0), turn.tokens.length - 1);
    turn.tokens[next].element.scrollIntoView({ block: "nearest" });
    showTip(turn.tokens[next], { speak: true });
  });
  for (const button of document.querySelectorAll(".regenerate")) button.remove();
  state.turns.push(turn);
  $("thread").append(turn.element);
  return turn;
}

function bodyOf(turn) {
  const before = converses() ? state.turns.slice(0, state.turns.indexOf(turn)).filter((each) => each.text) : [];
  const messages = before.flatMap(({ prompt, text }) => [
    { role: "user", content: prompt }, { role: "assistant", content: text },
  ]);
  const body = {
    model: state.model.id,
    messages: [...messages, { role: "user", content: turn.prompt }],
    stream: true,
    stream_options: { include_usage: true },
    temperature: Number($("temperature").value),
    calm: { contributions: true },
  };
  const scales = [...scalesOf(state.model.id)];
  if (scales.length) body.augmenters = Object.fromEntries(scales.map(([name, { on, value }]) => [name, on ? value : 0]));
  if ($("max-tokens").value) body.max_tokens = Number($("max-tokens").value);
  if ($("seed").value) body.seed = Number($("seed").value);
  return body;
}

async function run(turn) {
  state.running?.abort.abort();
  const abort = new AbortController();
  const mine = state.running = { turn, abort };
  Object.assign(turn, { text: "", tokens: [], failed: false });
  turn.answer.replaceChildren();
  turn.notice.replaceChildren();
  turn.meta.replaceChildren();
  turn.answer.setAttribute("aria-busy", "true");
  turn.answer.hidden = false;
  $("welcome").hidden = true;
  ready();
  follow(true);
  say("Answering");
  const body = bodyOf(turn);
  const timing = { start: performance.now(), first: null, last: null, pieces: 0, usage: null, finish: null, stopped: false };
  let pending = []; // of tokens whose text is not whole yet
  try {
    const response = await ask("v1/chat/completions", { body, signal: abort.signal });
    for await (const event of events(response)) {
      if (event.usage) timing.usage = event.usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      timing.finish = choice.finish_reason ?? timing.finish;
      const contributions = choice.calm?.contributions ?? [];
      if (contributions.length) {
        timing.last = performance.now();
        timing.first ??= timing.last;
        timing.pieces += 1;
        pending.push(...contributions);
      }
      const text = choice.delta?.content ?? "";
      if (text) {
        addToken(turn, text, mean(pending));
        pending = [];
      }
      showMeta(turn, body, timing, false);
      follow();
    }
  } catch (failure) {
    if (failure.name === "AbortError") timing.stopped = true;
    else if (!(failure instanceof Failure)) throw failure;
    else {
      turn.failed = true;
      const again = failure.code === "model_not_found" ? async () => { await load(); run(turn); } : () => run(turn);
      if (mine === state.running) showFailure(turn.notice, failure, again);
    }
  } finally {
    turn.answer.removeAttribute("aria-busy");
    if (mine === state.running) state.running = null;
    ready();
  }
  if (!turn.text) {
    if (turn.failed) turn.answer.hidden = true;
    else turn.answer.replaceChildren(make("span", { className: "nothing", textContent: timing.stopped ? "Stopped before the first word." : "An empty answer." }));
  }
  if (!turn.failed || turn.text) showMeta(turn, body, timing, true);
  showWrote();
  follow();
  if (!turn.failed) say(timing.stopped ? "Stopped" : `Answered: ${turn.text}`);
}

/** Return the mean of what augmenters wrote into the tokens that one text is made of. */
function mean(pending) {
  const names = new Set(pending.flatMap((each) => Object.keys(each)));
  return Object.fromEntries([...names].map((name) => [
    name, pending.reduce((sum, each) => sum + (each[name] ?? 0), 0) / pending.length,
  ]));
}

function addToken(turn, text, contributions) {
  const element = make("span", { className: "token", textContent: text });
  const token = { text, contributions, element };
  turn.text += text;
  turn.tokens.push(token);
  turn.answer.append(element);
  if (turn.tokens.length === 1) drawLegend();
  paintNext(token);
}

const ENDS = { stop: "", length: "stopped at the most tokens", cancelled: "cancelled" };

function showMeta(turn, body, timing, ended) {
  const made = timing.usage?.completion_tokens ?? timing.pieces;
  const spent = timing.last - timing.first;
  const facts = [];
  if (timing.usage) facts.push(`${timing.usage.prompt_tokens} + ${made} tokens`);
  else if (made) facts.push(`${made} token${made === 1 ? "" : "s"}`);
  // A rate of the tokens after the first; of so few that they may come in one packet, of all the time.
  const rate = timing.pieces >= 8 && spent > 0 ? (timing.pieces - 1) / spent : timing.pieces / (timing.last - timing.start);
  if (timing.pieces) facts.push(`${(rate * 1000).toFixed(1)} tokens/s`);
  if (timing.first !== null) facts.push(`first after ${seconds(timing.first - timing.start)}`);
  if (ended) {
    facts.push(timing.stopped ? "stopped" : ENDS[timing.finish] ?? timing.finish);
    facts.push(turnedDown(body));
  }
  turn.meta.replaceChildren(...facts.filter(Boolean).map((text) => make("span", { textContent: text })));
  if (!ended) return;
  const acts = make("span", { className: "acts" });
  if (turn.text && navigator.clipboard) {
    const copy = make("button", { type: "button", textContent: "Copy" });
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(turn.text);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
    acts.append(copy);
  }
  if (turn === state.turns.at(-1) && !turn.failed) {
    const again = make("button", { type: "button", className: "regenerate", textContent: "Regenerate" });
    again.addEventListener("click", () => { run(turn); $("prompt").focus(); });
    acts.append(again);
  }
  turn.meta.append(acts);
}

/** Say what of the answer's settings is not as declared. */
function turnedDown(body) {
  const declared = state.compositions.get(body.model)?.graph.composition?.augmenters ?? [];
  const changed = Object.entries(body.augmenters ?? {})
    .filter(([name, value]) => value !== (declared.find((each) => each.name === name)?.scale ?? 1))
    .map(([name, value]) => value ? `${name} ${factor(value)}` : `${name} off`);
  return [state.models.length > 1 ? body.model : null, ...changed].filter(Boolean).join(", ");
}

/** Show what went wrong in a place, with what can be done about it. */
function showFailure(place, failure, again) {
  if (failure.kind === "key") askForKey(again);
  const text = make("div", { role: "alert" }, make("strong", { textContent: failure.title }),
    make("p", { textContent: failure.kind === "key" ? "Give one above; the request is then sent again." : failure.text }));
  if (["broken", "cut", "late"].includes(failure.kind) && failure.request) {
    text.append(make("p", {}, make("code", { textContent: `request ${failure.request}` })));
  }
  const notice = make("div", { className: "notice bad", data: { kind: failure.kind } }, text);
  if (failure.kind === "key") { /* the form above has the button */ }
  else if (failure.kind === "long") {
    const button = make("button", { type: "button", textContent: "Start anew" });
    button.addEventListener("click", () => {
      const turn = state.turns.find((each) => each.notice === place);
      startAnew();
      $("prompt").value = turn?.prompt ?? ""; // to be shortened, or to be sent without what was before it
      fitPrompt();
      ready();
    });
    notice.append(button);
  }
  else {
    const button = make("button", { type: "button", textContent: "Try again" });
    button.addEventListener("click", () => { again(); $("prompt").focus(); });
    notice.append(button);
    const until = performance.now() + failure.wait_s * 1000;
    const count = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      button.disabled = left > 0;
      button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      if (left > 0 && button.isConnected) setTimeout(count, 250);
      else if (failure.wait_s && button.isConnected) say("The server can be asked again");
    };
    setTimeout(count);
  }
  place.replaceChildren(notice);
  follow();
}

let afterKey = null;

function askForKey(again) {
  afterKey = again;
  $("key-text").textContent = state.key
    ? "It does not know the one that was sent. Another one is kept until this tab is closed."
    : "It is kept until this tab is closed, and sent to this server only.";
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
}

// ---------------------------------------------------------------- what people do

/** Show which buttons can be pressed. */
function ready() {
  const running = Boolean(state.running);
  $("stop").hidden = !running;
  $("send").hidden = running;
  $("send").disabled = !state.model || !$("prompt").value.trim();
}

/** Keep the newest text in view, unless somebody has scrolled back to read. */
function follow(always = false) {
  const scroll = $("scroll");
  if (always || scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 160) scroll.scrollTop = scroll.scrollHeight;
}

function fitPrompt() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight}px`;
}

function send() {
  const prompt = $("prompt").value;
  if (!prompt.trim() || !state.model || state.running) return;
  if (!$("max-tokens").reportValidity() || !$("seed").reportValidity()) return;
  $("prompt").value = "";
  fitPrompt();
  run(addTurn(prompt));
}

function stop() {
  if (!state.running) return false;
  state.running.abort.abort();
  $("prompt").focus();
  return true;
}

function startAnew() {
  state.running?.abort.abort();
  state.running = null;
  state.turns = [];
  state.most = 0;
  $("thread").replaceChildren();
  $("welcome").hidden = !state.model;
  drawLegend();
  showWrote();
  hideTip();
  ready();
  $("prompt").focus();
}

function showSettings(open) {
  $("settings").classList.toggle("open", open);
  $("open-settings").setAttribute("aria-expanded", String(open));
  $("main").inert = $("bar").inert = open;
  (open ? $("close-settings") : $("open-settings")).focus();
}

const THEMES = ["system", "light", "dark"];

function setTheme(theme) {
  kept.set("localStorage", "calm-theme", theme === "system" ? null : theme);
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").dataset.theme = theme;
  $("theme").title = `Theme: ${theme}`;
  $("theme").setAttribute("aria-label", `Theme: ${theme}; press for ${THEMES[(THEMES.indexOf(theme) + 1) % 3]}`);
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("prompt").addEventListener("input", () => { fitPrompt(); ready(); });
$("prompt").addEventListener("keydown", (event) => {
  // While an input method composes a word, Enter ends the word.
  if (event.key !== "Enter" || event.shiftKey || event.altKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", startAnew);
$("model").addEventListener("change", () => choose($("model").value));
$("temperature").addEventListener("input", () => { $("temperature-value").textContent = $("temperature").value; });
$("max-tokens").addEventListener("input", () => { $("max-tokens").dataset.touched = "yes"; });
$("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf($("theme").dataset.theme) + 1) % 3]));
$("open-settings").addEventListener("click", () => showSettings(!$("settings").classList.contains("open")));
$("close-settings").addEventListener("click", () => showSettings(false));
$("show-graph").addEventListener("click", () => { $("graph-dialog").showModal(); placeGraph(); });
$("close-graph").addEventListener("click", () => $("graph-dialog").close());
$("graph-dialog").addEventListener("close", () => placeGraph());
$("graph-dialog").addEventListener("click", (event) => { if (event.target === $("graph-dialog")) $("graph-dialog").close(); });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  // A header holds visible ASCII only; what else was pasted cannot be a key.
  const key = $("key").value.trim().replace(/[^\x21-\x7e]/g, "");
  if (!key) return;
  state.key = key;
  kept.set("sessionStorage", "calm-key", key);
  $("key-form").hidden = true;
  $("key-section").hidden = false;
  $("prompt").focus();
  (afterKey ?? load)();
});
$("forget-key").addEventListener("click", () => {
  state.key = null;
  kept.set("sessionStorage", "calm-key", null);
  $("key-section").hidden = true;
  say("The key is forgotten");
});
$("scroll").addEventListener("scroll", hideTip, { passive: true });
addEventListener("resize", hideTip);
document.addEventListener("pointerdown", (event) => { if (!event.target.closest?.(".token")) hideTip(); });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || $("graph-dialog").open) return;
  if ($("settings").classList.contains("open")) showSettings(false);
  else if (!stop()) hideTip();
});
matchMedia("(min-width: 60.01rem)").addEventListener("change", () => {
  $("settings").classList.remove("open");
  $("open-settings").setAttribute("aria-expanded", "false");
  $("main").inert = $("bar").inert = false;
});

setTheme(THEMES.includes(kept.get("localStorage", "calm-theme")) ? kept.get("localStorage", "calm-theme") : "system");
ready();
load();
