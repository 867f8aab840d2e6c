// The chat page: it sends requests to the API of its own server, and shows what comes back. Everything shown is inserted
// as text, never as HTML. The parts, in this order:
//
//   requests    fetch with the key, waiting while the server loads, errors, the events of a stream
//   models      which one is chosen, and what the page offers for it
//   turns       a prompt and its answer: what is sent, and the answer while it arrives
//   tokens      the probability of a token, and its alternatives
//   documents   the passages that an answer is based on
//   labels      the probabilities of the labels
//   input       buttons and keys

(() => {
  "use strict";

  const ALTERNATIVES = 5; // of each token
  const LOADING = "The server is loading its models …";
  const USUAL = "0.8"; // temperature, as in tinygpt sample
  const RETRY = 1000; // milliseconds until the page asks a loading server again
  const MOST_NATS = 6; // a loss at which a token has the full shade, as in the report
  const $ = (id) => document.getElementById(id);
  const percent = (p) => (p >= 0.0995 ? `${Math.round(100 * p)}%` : p >= 0.00095 ? `${(100 * p).toFixed(1)}%` : "<0.1%");
  const grouped = (n) => n.toLocaleString("en");
  const clamp = (x, low, high) => Math.max(low, Math.min(x, high));

  /** A new element with attributes, holding texts and other elements. */
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  /** A token's text with visible characters for white space. */
  const shown = (text) => text.replace(/[ \n\t]/g, (white) => ({ " ": "␣", "\n": "↵", "\t": "⇥" })[white]);

  // ---- requests ----------------------------------------------------------------------------------------------------

  /** A request that failed, with a message for the user. */
  class Refused extends Error {
    constructor({ message, code }) {
      super(message);
      this.code = code;
    }
  }

  /** Turn the failure of a connection into Refused. */
  function disconnected(error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({ message: "The server does not answer. Is tinygpt serve still running?" });
  }

  /** Send a request; ask for the key if the server wants one, and wait while it loads. Errors: Refused, AbortError. */
  async function request(path, body, signal) {
    for (;;) {
      const headers = { "Content-Type": "application/json" };
      const key = sessionStorage.getItem("key");
      if (key) headers.Authorization = `Bearer ${key}`;
      const sent = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
      const response = await fetch(path, sent).catch(disconnected);
      if (response.ok) return response;
      const { error } = await response.json().catch(() => ({ error: { message: `HTTP status ${response.status}` } }));
      if (response.status === 401) {
        await askForKey(key, signal);
      } else if (error.code === "loading") {
        const before = $("state").textContent;
        if (before !== LOADING) $("state").textContent = LOADING;
        await new Promise((resolve) => setTimeout(resolve, RETRY));
        signal?.throwIfAborted();
      } else {
        throw new Refused(error);
      }
    }
  }

  /** Wait until the user has entered a key. refused: the key that the server did not accept, if there was one. */
  function askForKey(refused, signal) {
    $("key-note").textContent = refused
      ? "The server refused this key."
      : "The server requires a key. This page forgets it when the tab is closed.";
    $("key").hidden = false;
    $("key-input").focus();
    return new Promise((resolve, reject) => {
      const close = () => {
        $("key").hidden = true;
        $("key-input").value = "";
        $("box").focus();
      };
      $("key").onsubmit = (event) => {
        event.preventDefault();
        sessionStorage.setItem("key", $("key-input").value);
        close();
        resolve();
      };
      signal?.addEventListener("abort", () => {
        close();
        reject(signal.reason);
      });
    });
  }

  /** The chunks of a streamed answer. Errors: Refused, AbortError. */
  async function* chunks(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const { value, done } = await reader.read().catch(disconnected);
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const chunk = JSON.parse(line.slice("data: ".length));
        if (chunk.error) throw new Refused(chunk.error);
        yield chunk;
      }
    }
  }

  // ---- models ------------------------------------------------------------------------------------------------------

  const SELECT = "Select a token of the answer to see its probability at temperature 1 and the most probable alternatives.";
  const TASKS = {
    text: {
      label: "Text to continue",
      send: "Continue",
      hint: `Write the beginning of a text, and the model continues it. Continue again for more; what you write in between is added to the text. ${SELECT}`,
    },
    chat: { label: "Message", send: "Send", hint: `Write a message, and the model answers it. ${SELECT}` },
    documents: {
      label: "Question",
      send: "Ask",
      hint: "Ask a question. The sentence that answers it appears, with its passage and the next best sentences.",
    },
    labels: { label: "Text", send: "Label", hint: "Write a text. Its most probable label appears with its probability." },
  };
  let models = [];
  let model = null; // the chosen one
  let temperature = USUAL; // that the page has set

  /** What a model does, and its size. */
  function described({ id, task, turns, parameters, context }) {
    if (task === "documents") return "Quotes the sentence of the indexed documents that answers, each question independently of earlier ones.";
    if (task === "labels") return "Labels a text, each one independently of earlier ones.";
    const does = task === "text" ? "continues text" : turns ? "answers in a conversation" : "answers one message at a time and sees no earlier ones";
    const size = parameters < 1e5 ? grouped(parameters) : `${(parameters / 1e6).toFixed(parameters < 1e7 ? 2 : 0)} million`;
    return `${id} ${does}; it has ${size} parameters and a context of ${grouped(context)} tokens.`;
  }

  function choose(id) {
    running?.abort();
    model = models.find((one) => one.id === id);
    const { label, send: verb, hint } = TASKS[model.task];
    document.body.className = model.task;
    $("about").textContent = described(model);
    $("box-label").textContent = label;
    $("send").textContent = verb;
    $("hint-text").textContent = hint;
    $("starts").replaceChildren(...(model.starts ?? []).map((text) => make("button", { type: "button" }, text)));
    $("starts-label").hidden = !model.starts?.length;
    $("system-row").hidden = !model.system;
    // A model of pairs fills in a label or a form: greedy decoding, unless the user has chosen a temperature.
    const greedy = model.task === "chat" && !model.turns;
    if ($("temperature").value === temperature) $("temperature").value = temperature = greedy ? "0" : USUAL;
    for (const task in logs) logs[task].hidden = task !== model.task;
    refresh();
  }

  async function start() {
    try {
      models = (await (await request("v1/models")).json()).data;
    } catch (error) {
      return fail(error);
    }
    $("state").textContent = "";
    $("model").replaceChildren(...models.map(({ id }) => make("option", {}, id)));
    $("model").disabled = $("send").disabled = false;
    choose(models[0].id);
    $("box").focus({ preventScroll: true });
  }

  // ---- turns -------------------------------------------------------------------------------------------------------

  const sessions = { text: [], chat: [], documents: [], labels: [] }; // the turns of each task, oldest first
  const logs = {}; // the element of each session
  for (const task in sessions) $("logs").append((logs[task] = make("div", { class: "log" })));
  let running = null; // the AbortController of the answer that is being generated

  /** A turn: a prompt and its answer, with their elements. */
  class Turn {
    constructor(prompt, task) {
      this.prompt = prompt;
      this.said = make("p", { class: "said answer" });
      this.footer = make("footer", {});
      this.name = make("h2", {});
      this.facts = make("dl", { class: "facts" });
      this.passages = make("div", {});
      const given = make("p", { class: "said given" }, prompt);
      const asked = make("div", { class: "prompt" }, make("h2", {}, { chat: "You", labels: "Text" }[task] ?? "Question"), given);
      const parts = {
        text: [given, this.said, this.footer],
        chat: [asked, this.name, this.said, this.footer],
        documents: [asked, make("div", { class: "sources" }, make("div", {}, this.said, this.facts, this.footer), this.passages)],
        labels: [asked, this.said, this.facts, this.footer],
      };
      this.element = make("article", { class: "turn" }, ...parts[task]);
      this.clear();
    }

    /** Forget the answer. */
    clear() {
      cancelAnimationFrame(this.frame);
      this.frame = 0;
      this.text = ""; // of the answer, as far as the server has sent it
      this.known = ""; // the text of the tokens; longer than `text` while it may be the beginning of a stop text
      this.count = 0; // tokens
      this.parts = []; // tokens since the last complete character
      this.spans = []; // [{span, start, end}]: the place of a token in `known`
      this.shown = 0; // spans that are in the page
      this.filled = 0; // spans whose text is complete
      this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
      for (const element of [this.said, this.footer, this.facts, this.passages]) element.replaceChildren();
    }

    /** Add a piece of the answer and the tokens that came with it, {bytes, logprob, top}; they are shown in the next frame,
        since each change of a long text takes a while. */
    add(text, tokens) {
      this.text += text;
      for (const token of tokens) {
        this.count += 1;
        this.parts.push(token);
        this.place(this.decoder.decode(token.bytes, { stream: true }));
      }
      this.frame ||= requestAnimationFrame(() => {
        const follow = atEnd();
        this.show();
        scroll(follow);
      });
    }

    /** Show what has arrived. */
    show() {
      cancelAnimationFrame(this.frame);
      this.frame = 0;
      this.said.append(...this.spans.slice(this.shown).map(({ span }) => span));
      this.shown = this.spans.length;
      for (; this.filled < this.spans.length; this.filled++) {
        const { span, start, end } = this.spans[this.filled];
        span.textContent = this.text.slice(start, end);
        span.classList.toggle("line", span.textContent.includes("\n"));
        if (this.text.length < end) return;
      }
    }

    /** Make a span for the tokens of some complete characters. */
    place(text) {
      if (!text) return;
      const start = this.known.length;
      this.known += text;
      const span = tokenSpan(this.parts, text);
      if (!start) {
        this.said.role = "group";
        this.said.ariaLabel = "Answer; arrow keys move from token to token";
      }
      span.tabIndex = start ? -1 : 0;
      this.spans.push({ span, start, end: this.known.length });
      this.parts = [];
    }

    /** Show the rest of the text, and how the answer ended. */
    end(finish, seconds) {
      if (this.parts.length) this.place(this.text.slice(this.known.length));
      this.show();
      this.said.append(this.text.slice(this.known.length));
      for (const { span, start } of this.spans) span.classList.toggle("end", start >= this.text.length);
      const speed = `${grouped(this.count)} token${this.count === 1 ? "" : "s"} in ${seconds.toFixed(1)} s, ${grouped(Math.round(this.count / seconds))} tokens per second`;
      this.footer.replaceChildren(...[finish, this.count && speed].filter(Boolean).map((text) => make("span", {}, text)));
    }
  }

  const reasons = {
    stop: "Finish reason: stop",
    length: "Finish reason: length (max tokens)",
    stopped: "Stopped by you",
    failed: "Interrupted by an error",
  };

  /** Whether a model is not a GPT: it answers each message by itself, without settings. */
  const independent = (task) => task === "documents" || task === "labels";

  /** The request for the last one of some turns: path and body. */
  async function asking(turns, signal) {
    const common = { model: model.id, stream: true };
    const { prompt } = turns.at(-1);
    if (independent(model.task)) return ["v1/chat/completions", { ...common, messages: [{ role: "user", content: prompt }] }];
    Object.assign(common, settings());
    if (model.task === "text") return ["v1/completions", { ...common, prompt: await fitting(turns, signal), logprobs: ALTERNATIVES }];
    const messages = model.system && $("system").value.trim() ? [{ role: "system", content: $("system").value }] : [];
    for (const turn of model.turns ? turns : turns.slice(-1)) {
      messages.push({ role: "user", content: turn.prompt }, { role: "assistant", content: turn.text });
    }
    messages.pop(); // the answer that is asked for
    return ["v1/chat/completions", { ...common, messages, logprobs: true, top_logprobs: ALTERNATIVES }];
  }

  /** The whole text, or the ids of as much of its end as the context holds. */
  async function fitting(turns, signal) {
    const text = turns.map((turn) => turn.prompt + turn.text).join("");
    const response = await request("tokenize", { model: model.id, prompt: text }, signal);
    const { tokens } = await response.json();
    return tokens.length < model.context ? text : tokens.slice(-model.context);
  }

  function settings() {
    const found = {};
    for (const name of ["temperature", "top_k", "top_p", "max_tokens", "seed"]) {
      const input = $(name);
      if (!input.value) input.value = input.defaultValue;
      if (input.value) found[name] = Number(input.value);
    }
    const stop = $("stop_text").value.replaceAll("\\n", "\n");
    return stop ? { ...found, stop } : found;
  }

  /** Text, tokens and the finish reason of a chunk; `top` is a list of [text, log probability]. */
  function read(chunk) {
    const { text, delta, logprobs, finish_reason: finish } = chunk.choices[0];
    const encoder = new TextEncoder();
    const chat = logprobs?.content?.map(({ token, bytes, logprob, top_logprobs: top }) => ({
      text: token,
      bytes: new Uint8Array(bytes),
      logprob,
      top: top.map((other) => [other.token, other.logprob]),
    }));
    const completion = logprobs?.tokens?.map((token, index) => ({
      text: token,
      bytes: partial(token) ?? encoder.encode(token),
      logprob: logprobs.token_logprobs[index],
      top: Object.entries(logprobs.top_logprobs[index]),
    }));
    return { text: text ?? delta?.content ?? "", tokens: chat ?? completion ?? [], finish };
  }

  /** The bytes of a token that is a part of a character, which the API writes as bytes:\xe2\x82; else null. */
  const partial = (token) => (/^bytes:(\\x..)+$/.test(token) ? Uint8Array.from(token.slice(8).split("\\x"), (hex) => parseInt(hex, 16)) : null);

  /** Generate the answer of the last turn. */
  async function generate() {
    const { task } = model;
    const turns = sessions[task];
    const turn = turns.at(-1);
    const controller = (running = new AbortController());
    let started = performance.now();
    let finish = "";
    refresh();
    turn.clear();
    turn.name.textContent = model.id;
    turn.element.classList.add("busy");
    $("error").hidden = true;
    $("state").textContent = "Generating …";
    scroll(true);
    try {
      const [path, body] = await asking(turns, controller.signal);
      const response = await request(path, body, controller.signal);
      started = performance.now(); // until here it may have waited for a key or for the models
      if ($("state").textContent === LOADING) $("state").textContent = "Generating …";
      for await (const chunk of chunks(response)) {
        const piece = read(chunk);
        turn.add(piece.text, piece.tokens);
        finish = piece.finish || finish;
        if (chunk.documents) showDocuments(turn, chunk.documents);
        if (chunk.labels) showLabels(turn, chunk.labels);
      }
      if (!finish) throw new Refused({ message: "The connection ended before the answer was complete." });
    } catch (error) {
      finish = error.name === "AbortError" ? "stopped" : "failed";
      if (finish === "failed") fail(error);
    }
    running = null;
    const follow = atEnd();
    turn.element.classList.remove("busy");
    turn.end(independent(task) && finish === "stop" ? "" : reasons[finish], (performance.now() - started) / 1000);
    if (finish === "failed" && !turn.text) {
      withdraw(turn, turns);
    } else {
      $("live").textContent = turn.text; // for screen readers: the whole answer, once
    }
    $("state").textContent = "";
    refresh();
    if (task === "documents") turn.element.scrollIntoView(); // the answer is above its passages
    else scroll(follow);
  }

  /** Remove a turn that has no answer, and give its prompt back. */
  function withdraw(turn, turns) {
    if (turns.at(-1) === turn) turns.pop();
    turn.element.remove();
    $("box").value ||= turn.prompt;
  }

  function fail(error) {
    const more = error.code === "context_length_exceeded" ? ". Start over, or shorten the message." : "";
    $("error").textContent = error.message + more;
    $("error").hidden = false;
    if (!(error instanceof Refused)) throw error;
  }

  /** Whether the page is scrolled to its end, so that it should follow the answer. */
  const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 60;
  const scroll = (follow) => follow && scrollTo(0, document.documentElement.scrollHeight);

  // ---- tokens ------------------------------------------------------------------------------------------------------

  const details = new WeakMap(); // from a span to its tokens

  /** A span for a token, or for the tokens of one character. */
  function tokenSpan(tokens, text) {
    const span = make("span", { "data-label": shown(text) });
    span.style.setProperty("--l", clamp(-sum(tokens) / MOST_NATS, 0, 1));
    details.set(span, tokens);
    return span;
  }

  const sum = (tokens) => tokens.reduce((total, { logprob }) => total + logprob, 0);

  function describe(span) {
    const tokens = details.get(span);
    const [{ text, logprob, top }] = tokens;
    const about = `: probability ${percent(Math.exp(sum(tokens)))}, ${(-sum(tokens)).toFixed(2)} nats`;
    $("token").replaceChildren(make("p", {}, make("b", {}, span.dataset.label), about));
    if (tokens.length > 1) {
      $("token").append(make("p", {}, `This character consists of ${tokens.length} tokens; their probabilities are multiplied.`));
    } else {
      const others = top.some(([other]) => other === text) ? top : [...top, [text, logprob]];
      $("token").append(make("table", {}, ...others.sort((a, b) => b[1] - a[1]).map(([other, chance]) => row(other, Math.exp(chance), other === text))));
    }
    place(span);
  }

  function row(text, p, own) {
    const bar = make("i", {});
    bar.style.setProperty("--p", p);
    return make("tr", { class: own ? "own" : "" }, make("th", { scope: "row" }, shown(text)), make("td", { class: "bar" }, bar), make("td", {}, percent(p)));
  }

  /** Show the panel below a token, or above it if there is no room. */
  function place(span) {
    const panel = $("token");
    panel.hidden = false;
    const { left, top, bottom } = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const below = bottom + 6 + panel.offsetHeight < innerHeight;
    panel.style.left = `${clamp(left, 8, document.documentElement.clientWidth - panel.offsetWidth - 8) + scrollX}px`;
    panel.style.top = `${(below ? bottom + 6 : top - 6 - panel.offsetHeight) + scrollY}px`;
  }

  for (const type of ["pointerover", "focusin", "click"]) {
    document.addEventListener(type, ({ target }) => {
      if (details.has(target)) describe(target);
      else $("token").hidden = true;
    });
  }
  $("logs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20, Home: -Infinity, End: Infinity }[event.key];
    if (!step || !details.has(event.target)) return;
    event.preventDefault();
    const spans = [...event.target.parentElement.children].filter((span) => span.offsetParent);
    const next = spans[clamp(spans.indexOf(event.target) + step, 0, spans.length - 1)];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  // ---- documents ---------------------------------------------------------------------------------------------------

  function showDocuments(turn, { answer, probability, sentences, model, note }) {
    const facts = { Model: model, Probability: probability.toFixed(2), Note: note };
    for (const [name, fact] of Object.entries(facts)) {
      if (fact) turn.facts.append(make("dt", {}, name), make("dd", {}, fact));
    }
    if (!sentences.length) return;
    const list = make("ol", { class: "passages" }, ...sentences.map((one) => sentenceItem(one, answer)));
    turn.passages.append(make("h3", {}, answer ? "Sentences" : "Closest sentences"), list);
  }

  function showLabels(turn, { sure, probabilities }) {
    turn.facts.append(make("dt", {}, "Sure"), make("dd", {}, sure ? "yes" : "no: a person should look at it"));
    const best = Object.entries(probabilities).sort(([, p], [, q]) => q - p);
    for (const [label, p] of best.slice(0, ALTERNATIVES)) turn.facts.append(make("dt", {}, label), make("dd", {}, percent(p)));
  }

  /** A sentence with its place, marked in its passage, which is open for the answer. Places are given in code points. */
  function sentenceItem({ rank, source, position, title, columns, text, start, end, passage }, answered) {
    const letters = [...text];
    const part = (from, to) => letters.slice(from, to).join("");
    const marked = start === null ? [text] : [part(0, start), make("mark", {}, part(start, end)), part(end)];
    const at = passage.indexOf(text);
    const around = at < 0 ? [passage] : [passage.slice(0, at), make("b", {}, text), passage.slice(at + text.length)];
    const open = answered && rank === 1;
    const details = make("details", open ? { open: "" } : {}, make("summary", {}, "Passage"), make("p", {}, ...around));
    const names = columns && `columns: ${columns}`;
    const from = [`${rank}. ${source}`, position, title, names].filter(Boolean).join(", ");
    return make("li", { class: open ? "cited" : "" }, make("small", {}, from), make("p", {}, ...marked), details);
  }

  // ---- input -------------------------------------------------------------------------------------------------------

  const again = make("button", { type: "button", id: "again" }, "Again");

  /** Bring the buttons in line with what is running and what there is. */
  function refresh() {
    const turns = sessions[model.task];
    const leaves = running ? again : $("stop"); // the button that is now of no use
    const focused = leaves === document.activeElement || $("starts").contains(document.activeElement);
    $("send").disabled = Boolean(running);
    $("stop").disabled = !running;
    $("new").disabled = !turns.length;
    $("hint").hidden = turns.length > 0;
    $("token").hidden = true;
    again.remove();
    if (turns.length && !running) turns.at(-1).footer.append(again);
    if (focused) (running ? $("stop") : turns.length ? again : $("box")).focus();
  }

  function send(prompt = $("box").value) {
    if (!model || running || (model.task !== "text" && !prompt.trim())) return;
    const turn = new Turn(prompt, model.task);
    sessions[model.task].push(turn);
    logs[model.task].append(turn.element);
    $("box").value = "";
    generate();
  }

  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("box").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", ({ key }) => {
    if (key !== "Escape") return;
    $("token").hidden = true;
    running?.abort();
  });
  again.addEventListener("click", generate);
  $("starts").addEventListener("click", ({ target }) => target !== $("starts") && send(target.textContent));
  $("stop").addEventListener("click", () => running?.abort());
  $("new").addEventListener("click", () => {
    running?.abort();
    sessions[model.task].length = 0;
    logs[model.task].replaceChildren();
    $("box").focus();
    refresh();
  });
  $("model").addEventListener("change", () => choose($("model").value));
  $("shade").addEventListener("change", () => $("logs").classList.toggle("shaded", $("shade").checked));
  const wide = matchMedia("(min-width: 52.01rem)");
  const unfold = () => ($("settings").open = wide.matches);
  wide.addEventListener("change", unfold);
  unfold();
  start();
})();
