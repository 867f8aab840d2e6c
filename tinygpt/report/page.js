// What the page does: the text box with the live model, attention, ids, samples, and the guesses at a passage.
//
// `TinyGPT` (model.js) knows ids and numbers; this file knows the page. Everything that is shown is put in as text,
// never as HTML. The parts:
//
//   Samples     a slider over the steps                  Box         text, buttons, bars (one state: `reader`)
//   Loss        what the model guessed at a character    Attention   thumbnails, one head, one character
//   Numbers     the ids of the text in the box

(() => {
  "use strict";

  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const percent = (p) => (p >= 0.0995 ? `${Math.round(100 * p)} %` : p >= 0.00095 ? `${(100 * p).toFixed(1)} %` : p > 0 ? "<0.1 %" : "–");
  const clamp = (x, low, high) => Math.max(low, Math.min(x, high));

  /** A new element with attributes, holding texts and other elements. */
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  /** How a symbol is shown where it stands alone. */
  function shown(symbol) {
    const names = { " ": "␣", "\n": "↵", "\t": "⇥" };
    return names[symbol] || symbol.replace(/^<\|(.+)\|>$/, "$1");
  }

  // ---- samples over training ---------------------------------------------------------------------------------------

  function showSamples() {
    const figures = [...$("moments").children];
    const choose = () => {
      figures.forEach((figure, index) => (figure.hidden = index !== Number($("when").value)));
      $("when-step").value = figures[$("when").value].dataset.step;
      $("when").setAttribute("aria-valuetext", `step ${$("when-step").value}`);
    };
    $("when").addEventListener("input", choose);
    choose();
  }

  // ---- where the loss comes from -----------------------------------------------------------------------------------

  function showGuesses() {
    for (const passage of document.querySelectorAll(".cells")) {
      const cells = data.cells[passage.dataset.split];
      const places = [...passage.querySelectorAll("span[data-i]")].filter((span) => cells[span.dataset.i]);
      let at = places[0];
      const choose = (span) => {
        for (const old of document.querySelectorAll(".cells .at")) old.classList.remove("at");
        at.tabIndex = -1;
        at = span;
        at.tabIndex = 0;
        at.classList.add("at");
        describe(span.textContent, cells[span.dataset.i]);
      };
      if (at) at.tabIndex = 0;
      for (const type of ["pointerover", "focusin", "click"]) {
        passage.addEventListener(type, ({ target }) => places.includes(target) && choose(target));
      }
      passage.addEventListener("keydown", (event) => {
        const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20 }[event.key];
        if (!by) return;
        event.preventDefault();
        choose(places[clamp(places.indexOf(at) + by, 0, places.length - 1)]);
        at.focus();
      });
    }
  }

  function describe(text, [rank, p, loss, top]) {
    const others = top.map(([symbol, chance]) => [" ", make("b", {}, shown(symbol)), ` ${percent(chance)}`]);
    $("guess").replaceChildren(
      make("b", {}, shown(text)),
      ` had a probability of ${percent(p)}, rank ${rank}: a loss of ${loss.toFixed(2)} nats.`,
      make("br", {}),
      "The likeliest:",
      ...others.flat(),
    );
  }

  if ($("moments")) showSamples();
  if ($("guess")) showGuesses();
  if (!data.model) return;

  // ---- type here ---------------------------------------------------------------------------------------------------

  const MOST_BARS = 10; // characters with bars of their own; the others share one
  const FRAME = 14; // milliseconds of a frame that go into new text
  const model = TinyGPT.load(data.model);
  const marks = model.special;
  const box = $("text");
  const random = TinyGPT.random(1337);
  const history = []; // texts to go back to
  let caret = box.value.length; // of our own: a browser forgets a box's when another element is pressed
  let reader = null; // has read what stands before the cursor
  let running = false;

  /** The ids that stand before the cursor, and what of the text has no id. */
  function idsBefore(end) {
    const { ids, unknown } = model.encode(box.value.slice(0, end));
    if (!data.answers) return { ids: ids.length ? ids : [lineStart()], unknown };
    const prompt = model.encode($("prompt").value.trim());
    return { ids: [marks["<|prompt|>"], ...prompt.ids, marks["<|response|>"], ...ids], unknown: [...prompt.unknown, ...unknown] };
  }

  /** What an empty text stands for: a line's start. */
  const lineStart = () => model.encode("\n").ids[0] ?? 0;

  /** Let the reader read what is new; where the text has changed before that, or a lot is new, the last window again. */
  function read(ids) {
    const known = reader ? reader.ids : [];
    const more = ids.length - known.length;
    const goesOn = reader && more >= 0 && more <= model.config.block_size;
    if (goesOn && known.every((id, place) => id === ids[place])) ids.slice(known.length).forEach((id) => reader.push(id));
    else reader = model.reader(ids);
  }

  const choice = () => ({
    temperature: Number($("temperature").value),
    topK: Number($("top-k").value),
    topP: Number($("top-p").value),
  });

  function refresh() {
    const { ids, unknown } = idsBefore(caret);
    read(ids);
    drawBars();
    const inside = caret < box.value.length;
    $("note").textContent = inside ? "The bars are for the place of the cursor; a new character takes the place of what follows it." : "";
    if (unknown.length) $("note").textContent += ` ${unknown.length} character${unknown.length > 1 ? "s" : ""} that the model does not know left out.`;
    later();
  }

  /** The next character's probabilities, stage by stage. */
  function drawBars() {
    const stages = TinyGPT.probabilities(reader.logits, choice());
    const columns = [stages.raw, stages.temperature, stages.topK, stages.topP, stages.topP];
    const ids = [...stages.raw.keys()].sort((a, b) => stages.raw[b] - stages.raw[a]);
    const row = (head, name, ps) => {
      const cells = ps.map((p) => {
        const cell = make("td", { "data-p": p, class: p > 0 ? "" : "gone" }, make("span", { class: "bar" }), percent(p));
        cell.firstChild.style.setProperty("--p", p);
        return cell;
      });
      return make("tr", { class: name }, make("th", { scope: "row" }, head), ...cells);
    };
    const rows = ids.slice(0, MOST_BARS).map((id) => {
      const button = make("button", { type: "button", "data-id": id, "aria-label": `take ${shown(model.symbols[id])}` }, shown(model.symbols[id]));
      return row(button, "", columns.map((p) => p[id]));
    });
    const others = ids.slice(MOST_BARS);
    if (others.length) {
      const sums = columns.map((p) => others.reduce((sum, id) => sum + p[id], 0));
      rows.push(row(`${others.length} more`, "rest", sums));
    }
    $("bars").tBodies[0].replaceChildren(...rows);
    $("temperature").nextElementSibling.value = choice().temperature.toFixed(2);
    $("top-k").nextElementSibling.value = choice().topK || "all";
    $("top-p").nextElementSibling.value = choice().topP.toFixed(2);
  }

  const remember = () => {
    if (history.at(-1)?.text !== box.value) history.push({ text: box.value, prompt: $("prompt")?.value });
    $("back").disabled = false;
  };

  const write = (text) => {
    box.value = text;
    caret = text.length;
    box.setSelectionRange(caret, caret);
    box.scrollTop = box.scrollHeight;
  };

  /** Put new text at the cursor; what followed it goes. */
  const put = (text) => write(box.value.slice(0, caret) + text);

  /** Let the reader take one character; its symbol, or nothing for the end of a response. */
  function take(id) {
    if (id === marks["<|end|>"]) return "";
    reader.push(id);
    return model.symbols[id];
  }

  /** One character from the place of the cursor on: the one that `choose` gives, once what is before it was read. */
  function step(choose) {
    remember();
    read(idsBefore(caret).ids);
    const symbol = take(choose());
    put(symbol);
    $("speed").textContent = symbol ? "" : "the response ends here";
    refresh();
  }

  const draw = () => TinyGPT.draw(TinyGPT.probabilities(reader.logits, choice()).topP, random());

  /** Write on, a few characters a frame, until stopped. */
  function run() {
    remember();
    read(idsBefore(caret).ids);
    const started = performance.now();
    let made = 0;
    setRunning(true);
    const frame = () => {
      const until = performance.now() + FRAME;
      let text = ""; // put in once a frame: a box that grows is laid out anew each time
      while (running && performance.now() < until) {
        const symbol = take(draw());
        if (!symbol) setRunning(false);
        else made += 1;
        text += symbol;
      }
      put(text);
      $("speed").textContent = `${Math.round((1000 * made) / (performance.now() - started))} characters a second`;
      if (running) {
        drawBars();
        requestAnimationFrame(frame);
      } else {
        $("speed").textContent = made ? $("speed").textContent : "the response ends here";
        refresh();
      }
    };
    requestAnimationFrame(frame);
  }

  function setRunning(value) {
    running = value;
    $("continue").disabled = $("step").disabled = value;
    $("stop").disabled = !value;
  }

  $("continue").addEventListener("click", run);
  $("stop").addEventListener("click", () => setRunning(false));
  $("step").addEventListener("click", () => step(draw));
  $("back").addEventListener("click", () => {
    const { text, prompt } = history.pop();
    setRunning(false);
    if (prompt !== undefined) $("prompt").value = prompt;
    write(text);
    $("back").disabled = !history.length;
    refresh();
  });
  $("bars").addEventListener("click", ({ target }) => {
    if (target.dataset.id === undefined) return;
    setRunning(false);
    step(() => Number(target.dataset.id));
  });
  for (const id of ["temperature", "top-k", "top-p"]) $(id).addEventListener("input", drawBars);
  for (const type of ["input", "keyup", "click"]) {
    box.addEventListener(type, () => {
      if (running) return;
      caret = box.selectionEnd;
      refresh();
    });
  }
  $("prompt")?.addEventListener("input", refresh);

  // ---- attention ---------------------------------------------------------------------------------------------------

  const WINDOW = Math.min(64, model.config.block_size); // characters that are shown
  const { n_layer, n_head } = model.config;
  const chosen = { layer: 0, head: 0 };
  let seen = { ids: [], weights: [] }; // weights[position][layer][head]: over the positions up to this one

  function look() {
    const ids = idsBefore(box.value.length).ids.slice(-WINDOW);
    const state = model.start();
    const weights = ids.map((id) => {
      state.read(id, true);
      return state.attention;
    });
    seen = { ids, weights };
    for (const button of $("heads").children) {
      paint(button.firstChild, Number(button.dataset.layer), Number(button.dataset.head));
    }
    showHead();
  }

  /** One head's weights as a picture, a pixel for each pair of positions. */
  function paint(canvas, layer, head) {
    const size = seen.ids.length;
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    context.fillStyle = colour;
    seen.weights.forEach((position, row) =>
      position[layer][head].forEach((weight, column) => {
        context.globalAlpha = Math.sqrt(weight); // small weights would not be seen otherwise
        context.fillRect(column, row, 1, 1);
      }),
    );
  }

  function showHead() {
    const { layer, head } = chosen;
    for (const button of $("heads").children) {
      button.setAttribute("aria-pressed", button.dataset.layer == layer && button.dataset.head == head);
    }
    paint($("matrix"), layer, head);
    $("which").textContent = `Layer ${layer + 1}, head ${head + 1}`;
    $("matrix").setAttribute("aria-label", `Weights of layer ${layer + 1}, head ${head + 1}`);
    const spans = seen.ids.map((id, place) => {
      const text = model.symbols[id];
      const isMark = Object.values(marks).includes(id);
      return make("span", { tabindex: 0, "data-place": place }, isMark ? `[${shown(text)}]` : text === "\n" ? "↵\n" : text);
    });
    $("looked").replaceChildren(...spans);
    if (spans.length) lookFrom(spans.length - 1);
  }

  function lookFrom(place) {
    const row = seen.weights[place][chosen.layer][chosen.head];
    [...$("looked").children].forEach((span, index) => {
      span.style.setProperty("--a", Math.sqrt(row[index] || 0));
      span.classList.toggle("from", index === place);
    });
    const most = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 3);
    const name = (index) => `“${shown(model.symbols[seen.ids[index]])}” ${index === place ? "(itself)" : `(${place - index} before)`} ${percent(row[index])}`;
    $("looks").textContent = `“${shown(model.symbols[seen.ids[place]])}” looks mostly at ${most.map(name).join(", ")}.`;
  }

  $("heads").style.setProperty("--heads", n_head);
  for (let layer = 0; layer < n_layer; layer++) {
    for (let head = 0; head < n_head; head++) {
      const label = `layer ${layer + 1}, head ${head + 1}`;
      const button = make("button", { type: "button", "data-layer": layer, "data-head": head, "aria-label": label }, make("canvas", {}), `${layer + 1}·${head + 1}`);
      button.addEventListener("click", () => {
        Object.assign(chosen, { layer, head });
        showHead();
      });
      $("heads").append(button);
    }
  }
  for (const type of ["pointerover", "focusin", "click"]) {
    $("looked").addEventListener(type, ({ target }) => target.dataset.place && lookFrom(Number(target.dataset.place)));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look);

  // ---- numbers -----------------------------------------------------------------------------------------------------

  const MOST_IDS = 200;

  function showIds() {
    const prompt = data.answers ? ["<|prompt|>", ...$("prompt").value.trim(), "<|response|>"] : [];
    const unknown = new Set();
    const items = [...prompt, ...box.value].slice(-MOST_IDS).map((character) => {
      const id = marks[character] ?? model.encode(character).ids[0]; // a mark is longer than any character
      if (id === undefined) unknown.add(character);
      return make("li", id === undefined ? { class: "unknown" } : {}, shown(character), make("small", {}, id ?? "none"));
    });
    $("ids").replaceChildren(...items);
    const left = [...unknown].map((character) => `${shown(character)} (U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")})`);
    $("unknown").textContent = left.length ? `The model has no symbol for ${left.join(", ")}: left out.` : `All of these are among the model's ${model.symbols.length} symbols.`;
  }

  /** Attention and ids follow the text when it has been still for a moment. */
  let timer = 0;
  function later() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (running) return;
      look();
      showIds();
    }, 200);
  }

  $("top-k").max = Math.min(model.symbols.length, 40);
  refresh();
})();
