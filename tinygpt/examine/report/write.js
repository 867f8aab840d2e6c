// The sections in which the reader uses the model: type here, with its buttons, the bars of the next character and the
// slider through training; and the ids of the text. They also say what the attention section shows.

(() => {
  "use strict";

  const { $, make, barCell, shown, number, choice } = Page;
  if (!$("text")) return; // the model is not in the page

  const MOST_BARS = 10; // tokens with a row each; the others share one
  const FRAME = 14; // milliseconds of each frame spent on new text
  const CONTINUATION = 120; // tokens
  const MOST = 500; // characters that Continue writes
  const LONGEST = 4; // most tokens of a character: its bytes
  const box = $("text");
  const random = TinyGPT.random(1337);
  const history = []; // earlier texts, for Undo
  let caret = box.value.length; // kept here, since a browser may forget it when another element gets the focus
  let reader = null; // it has read the text before the cursor
  let write = null; // turns the tokens that follow into text
  let running = false;
  let version = null; // of the model: the best one, or a snapshot of its training
  let model = null; // that version's

  const idsBefore = (end) => Page.encode(version, $("prompt")?.value.trim() ?? "", box.value.slice(0, end));

  /** Read only the new ids if they follow those already read and fit a window; otherwise read the last window again. */
  function read(ids) {
    const known = reader?.ids ?? [];
    const added = ids.slice(known.length);
    const follows = reader && added.length <= model.config.block_size && known.every((id, index) => id === ids[index]);
    if (follows) added.forEach((id) => reader.push(id));
    else reader = model.reader(ids, true);
    write = model.tokens.writer();
  }

  function refresh() {
    const { ids, unknown } = idsBefore(caret);
    read(ids);
    drawBars();
    const inside = caret < box.value.length;
    $("note").textContent = inside ? "The bars show the predictions at the cursor; what you add replaces the text after the cursor." : "";
    if (unknown.length) $("note").textContent += ` ${unknown.length} character${unknown.length > 1 ? "s are" : " is"} not in the model's vocabulary, and left out.`;
    later();
  }

  /** The next token's probabilities after each stage. */
  function drawBars() {
    const { temperature, topK, topP } = choice();
    const stages = TinyGPT.probabilities(reader.logits, { temperature, topK, topP });
    const changed = [true, temperature !== 1, topK > 0, topP < 1]; // the text is drawn from the last of these columns
    const columns = [stages.raw, stages.temperature, stages.topK, stages.topP].filter((_, stage) => changed[stage]);
    const ids = [...stages.raw.keys()].sort((a, b) => stages.raw[b] - stages.raw[a]);
    const row = (head, name, ps) => {
      return make("tr", { class: name }, make("th", { scope: "row" }, head), ...ps.map(barCell));
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
    [...$("bars").tHead.rows[0].cells].slice(1).forEach((cell, stage) => (cell.hidden = !changed[stage]));
    $("bars").tBodies[0].replaceChildren(...rows);
    $("temperature").nextElementSibling.value = temperature.toFixed(2);
    $("top-k").nextElementSibling.value = topK || "all";
    $("top-p").nextElementSibling.value = topP.toFixed(2);
  }

  const remember = () => {
    if (history.at(-1)?.text !== box.value) history.push({ text: box.value, prompt: $("prompt")?.value });
    $("undo").disabled = false;
  };

  const fill = (text) => {
    box.value = text;
    caret = text.length;
    box.setSelectionRange(caret, caret);
    box.scrollTop = box.scrollHeight;
  };

  /** Insert text at the cursor, and delete the text after it. */
  const put = (text) => fill(box.value.slice(0, caret) + text);

  /** Read one token; returns the text that is complete with it, or null at the end of a response. */
  function take(id) {
    if (id === model.end) return null;
    reader.push(id);
    return write(id);
  }

  /** Add the token that `choose` returns at the cursor, and the rest of its character if it is a part of one. */
  function step(choose) {
    remember();
    read(idsBefore(caret).ids);
    let text = take(choose());
    for (let more = 1; more < LONGEST && text === ""; more++) text = take(draw());
    put(text ?? "");
    $("speed").textContent = text === null ? "the response ends here" : "";
    refresh();
  }

  const draw = () => TinyGPT.draw(TinyGPT.probabilities(reader.logits, choice()).topP, random());

  /** Write `most` characters or until stopped: as many tokens in a frame as there is time for, or one. */
  function run(most, oneByOne) {
    remember();
    read(idsBefore(caret).ids);
    const started = performance.now();
    let made = 0;
    setRunning(true);
    const frame = () => {
      const until = performance.now() + FRAME;
      let text = ""; // inserted once per frame: each insertion lays out the box again
      while (running && performance.now() < until) {
        const added = take(draw());
        if (added === null) setRunning(false);
        else text += added;
        if (oneByOne || made + text.length >= most) break;
      }
      put(text);
      made += text.length;
      if (made >= most) setRunning(false);
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
    if (value) $("note").textContent = "The sections below are updated when the text stops.";
  }

  $("continue").addEventListener("click", () => run(MOST, false));
  $("stop").addEventListener("click", () => setRunning(false));
  $("step").addEventListener("click", () => step(draw));
  $("undo").addEventListener("click", () => {
    const { text, prompt } = history.pop();
    setRunning(false);
    if (prompt !== undefined) $("prompt").value = prompt;
    fill(text);
    $("undo").disabled = !history.length;
    refresh();
  });
  $("bars").addEventListener("click", ({ target }) => {
    if (target.dataset.id === undefined) return;
    setRunning(false);
    step(() => Number(target.dataset.id));
  });
  for (const id of ["temperature", "top-k", "top-p"]) {
    $(id).addEventListener("input", () => {
      drawBars();
      later();
    });
  }
  for (const type of ["input", "keyup", "click"]) {
    box.addEventListener(type, () => {
      if (running) return;
      caret = box.selectionEnd;
      refresh();
    });
  }
  $("prompt")?.addEventListener("input", refresh);

  // ---- the slider through training -----------------------------------------------------------------------------------

  const stepSliders = document.querySelectorAll(".step-slider"); // the same slider in two sections

  /** The versions that the slider goes through: snapshots of the training, and the best model. */
  const snapshots = () => Page.versions.filter(({ run }) => run === 0);

  function choose(index) {
    const all = snapshots();
    version = all[index];
    model = version.model;
    reader = null;
    for (const slider of stepSliders) {
      const [input, output] = [slider.querySelector("input"), slider.querySelector("output")];
      slider.hidden = all.length < 2;
      input.max = all.length - 1;
      input.value = index;
      output.value = version.main ? `${number(version.step)}, best` : version.step ? number(version.step) : `0, ${slider.dataset.start}`;
      input.setAttribute("aria-valuetext", version.label);
    }
    $("continuation").hidden = all.length < 2;
    $("continue").textContent = version.main ? "Continue" : `Continue with step ${number(version.step)}`;
    if (running) return read(idsBefore(caret).ids);
    refresh();
    follow(); // now, so that no other step's text stands beside the slider
  }

  /** Show how the model of this step continues the text, with the same random numbers at each step. */
  function showContinuation() {
    const text = Page.continued(model, idsBefore(box.value.length).ids, choice(), CONTINUATION);
    const name = version.main ? `The best model, of step ${number(version.step)},` : `${playing ? "Replay of the training: the" : "The"} model of ${version.label}`;
    $("continuation").replaceChildren(make("span", { class: "silent" }, `${name} ${version.answers ? "responds" : "continues the text"}: `), text);
  }

  for (const slider of stepSliders) slider.querySelector("input").addEventListener("input", ({ target }) => choose(Number(target.value)));

  // ---- what the page does by itself, when it opens -------------------------------------------------------------------

  const START = 2000; // milliseconds at step 0
  const MOMENT = 900; // and at each later step of the training
  const OPENING = 400; // characters that the page of a model alone writes
  const best = () => snapshots().findIndex(({ main }) => main);
  let playing = 0; // the timer of the next step
  let opening = true; // the page of a model alone writes, or would

  function open() {
    if (document.body.className === "report") play(0);
    else if (box.value) run(OPENING, true);
  }

  /** Go through the training once, up to the best model. */
  function play(index) {
    playing = index < best() && setTimeout(play, index ? MOMENT : START, index + 1);
    choose(index);
  }

  /** The reader has touched the page: stop, and show the best model, unless the reader chooses another. */
  function interrupt({ target }) {
    if (opening) setRunning(false);
    opening = false;
    if (!playing) return;
    clearTimeout(playing);
    playing = 0;
    if (!target.closest?.(".step-slider")) choose(best());
  }

  for (const type of ["pointerdown", "keydown", "wheel"]) addEventListener(type, interrupt, { capture: true, passive: true });
  for (const button of document.querySelectorAll(".step-slider button")) button.addEventListener("click", () => play(0));

  /** Update walk, attention and continuation: now, or 200 ms after the last change. */
  function follow() {
    clearTimeout(timer);
    if (running) return;
    Attention.look(model, idsBefore(box.value.length).ids);
    Walk.look(reader);
    if (snapshots().length > 1) showContinuation();
  }

  let timer = 0;
  function later() {
    clearTimeout(timer);
    timer = setTimeout(follow, 200);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  $("top-k").max = Math.min(Page.versions[0].model.vocabulary.length, 40);
  Attention.setup(Page.versions[0].model.config);
  Walk.setup(Page.versions[0].model.config);
  choose(best());
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) open();
})();
