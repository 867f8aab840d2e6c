// The interactive parts of the page. `TinyGPT` (model.js) knows ids and logits; this file knows the page. Everything
// shown is inserted as text, never as HTML. The parts, in this order:
//
//   samples     a slider over the steps
//   loss        the prediction of one token
//   type here   the text box, its buttons, and the bars of the next character
//   attention   all heads, one head, one character
//   tokens      the ids of the text in the box

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

  /** A token's text, with visible characters for white space and without the brackets of a special token. */
  function shown(token) {
    const names = { " ": "␣", "\n": "↵", "\t": "⇥" };
    return names[token] || token.replace(/^<\|(.+)\|>$/, "$1");
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

  // ---- the prediction of each token --------------------------------------------------------------------------------

  function showPredictions() {
    for (const passage of document.querySelectorAll(".cells")) {
      const cells = data.cells[passage.dataset.split];
      const characters = [...passage.querySelectorAll("span[data-i]")].filter((span) => cells[span.dataset.i]);
      let at = characters[0];
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
        passage.addEventListener(type, ({ target }) => characters.includes(target) && choose(target));
      }
      passage.addEventListener("keydown", (event) => {
        const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20 }[event.key];
        if (!steps) return;
        event.preventDefault();
        choose(characters[clamp(characters.indexOf(at) + steps, 0, characters.length - 1)]);
        at.focus();
      });
    }
  }

  function describe(text, [rank, p, loss, top]) {
    const others = top.map(([token, chance]) => [" ", make("b", {}, shown(token)), ` ${percent(chance)}`]);
    $("guess").replaceChildren(
      make("b", {}, shown(text)),
      ` had a probability of ${percent(p)}, rank ${rank}: a loss of ${loss.toFixed(2)} nats.`,
      make("br", {}),
      "Most probable:",
      ...others.flat(),
    );
  }

  if ($("moments")) showSamples();
  if ($("guess")) showPredictions();
  if (!data.model) return;

  // ---- type here ---------------------------------------------------------------------------------------------------

  const MOST_BARS = 10; // tokens with a row each; the others share one
  const FRAME = 14; // milliseconds of each frame spent on new text
  const model = TinyGPT.load(data.model);
  const special = model.special;
  const box = $("text");
  const random = TinyGPT.random(1337);
  const history = []; // earlier texts, for Back
  let caret = box.value.length; // kept here, since a browser may forget it when another element gets the focus
  let reader = null; // it has read the text before the cursor
  let running = false;

  /** {ids, unknown} of the text before `end`, in the format of prompts and responses if the model answers prompts. */
  function idsBefore(end) {
    const { ids, unknown } = model.encode(box.value.slice(0, end));
    if (!data.answers) return { ids: ids.length ? ids : [lineStart()], unknown };
    const prompt = model.encode($("prompt").value.trim());
    return { ids: [special["<|prompt|>"], ...prompt.ids, special["<|response|>"], ...ids], unknown: [...prompt.unknown, ...unknown] };
  }

  /** The id that stands for an empty text: a newline. */
  const lineStart = () => model.encode("\n").ids[0] ?? 0;

  /** Read only the new ids if they follow those already read and fit a window; otherwise read the last window again. */
  function read(ids) {
    const known = reader?.ids ?? [];
    const added = ids.slice(known.length);
    const follows = reader && added.length <= model.config.block_size && known.every((id, index) => id === ids[index]);
    if (follows) added.forEach((id) => reader.push(id));
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
    $("note").textContent = inside ? "The bars show the predictions at the cursor; a new character replaces the text after the cursor." : "";
    if (unknown.length) $("note").textContent += ` ${unknown.length} character${unknown.length > 1 ? "s are" : " is"} not in the model's vocabulary, and left out.`;
    later();
  }

  /** The next token's probabilities after each stage. */
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
      const button = make("button", { type: "button", "data-id": id, "aria-label": `add ${shown(model.vocabulary[id])}` }, shown(model.vocabulary[id]));
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

  /** Insert text at the cursor, and delete the text after it. */
  const put = (text) => write(box.value.slice(0, caret) + text);

  /** Read one token; returns it, or an empty text at the end of a response. */
  function take(id) {
    if (id === special["<|end|>"]) return "";
    reader.push(id);
    return model.vocabulary[id];
  }

  /** Add the token that `choose` returns at the cursor. */
  function step(choose) {
    remember();
    read(idsBefore(caret).ids);
    const token = take(choose());
    put(token);
    $("speed").textContent = token ? "" : "the response ends here";
    refresh();
  }

  const draw = () => TinyGPT.draw(TinyGPT.probabilities(reader.logits, choice()).topP, random());

  /** Continue the text, a few tokens per frame, until stopped. */
  function run() {
    remember();
    read(idsBefore(caret).ids);
    const started = performance.now();
    let made = 0;
    setRunning(true);
    const frame = () => {
      const until = performance.now() + FRAME;
      let text = ""; // inserted once per frame: each insertion lays out the box again
      while (running && performance.now() < until) {
        const token = take(draw());
        if (!token) setRunning(false);
        else made += 1;
        text += token;
      }
      put(text);
      $("speed").textContent = `${Math.round((1000 * made) / (performance.now() - started))} characters per second`;
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
  let seen = { ids: [], weights: [] }; // weights[position][layer][head]: of the positions up to this one

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
        context.globalAlpha = Math.sqrt(weight); // makes small weights visible
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
      const text = model.vocabulary[id];
      const isSpecial = Object.values(special).includes(id);
      return make("span", { tabindex: 0, "data-place": place }, isSpecial ? `[${shown(text)}]` : text === "\n" ? "↵\n" : text);
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
    const name = (index) => `“${shown(model.vocabulary[seen.ids[index]])}” ${index === place ? "(itself)" : `(${place - index} earlier)`} ${percent(row[index])}`;
    $("looks").textContent = `“${shown(model.vocabulary[seen.ids[place]])}” attends mostly to ${most.map(name).join(", ")}.`;
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

  // ---- tokens ------------------------------------------------------------------------------------------------------

  const MOST_IDS = 200;

  function showIds() {
    const prompt = data.answers ? ["<|prompt|>", ...$("prompt").value.trim(), "<|response|>"] : [];
    const unknown = new Set();
    const items = [...prompt, ...box.value].slice(-MOST_IDS).map((character) => {
      const id = special[character] ?? model.encode(character).ids[0]; // a special token's name is longer than a character
      if (id === undefined) unknown.add(character);
      return make("li", id === undefined ? { class: "unknown" } : {}, shown(character), make("small", {}, id ?? "none"));
    });
    $("ids").replaceChildren(...items);
    const left = [...unknown].map((character) => `${shown(character)} (U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")})`);
    $("unknown").textContent = left.length ? `Not in the model's vocabulary, and left out: ${left.join(", ")}.` : `All of these are in the model's vocabulary of ${model.vocabulary.length} tokens.`;
  }

  /** Update attention and ids 200 ms after the last change of the text. */
  let timer = 0;
  function later() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (running) return;
      look();
      showIds();
    }, 200);
  }

  $("top-k").max = Math.min(model.vocabulary.length, 40);
  refresh();
})();
