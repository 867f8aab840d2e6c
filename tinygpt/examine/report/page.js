// What all parts of the page share, and the sections that need no model: samples, and the loss of each token. Everything
// shown is inserted as text, never as HTML. The other parts: write.js (type here, tokens),
// draw_attention.js, compare.js.

const Page = (() => {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);

  const $ = (id) => document.getElementById(id);
  const percent = (p) => (p >= 0.0995 ? `${Math.round(100 * p)}%` : p >= 0.00095 ? `${(100 * p).toFixed(1)}%` : p > 0 ? "<0.1%" : "–");
  const number = (value) => value.toLocaleString("en");
  const clamp = (x, low, high) => Math.max(low, Math.min(x, high));

  /** A new element with attributes, holding texts and other elements. */
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  /** {ids, unknown} of a prompt and the start of its response, or of a text, in the format of a version's model. */
  function encode({ model, answers }, prompt, text) {
    const { ids, unknown } = model.encode(answers || !prompt ? text : `${prompt}\n${text}`);
    if (!answers) return { ids: ids.length ? ids : [model.encode("\n").ids[0] ?? 0], unknown }; // a newline stands for an empty text
    const before = model.encode(prompt);
    const { special } = model;
    return { ids: [special["<|prompt|>"], ...before.ids, special["<|response|>"], ...ids], unknown: [...before.unknown, ...unknown] };
  }

  /** `count` tokens that a model writes after `ids`, up to the end of a response: the same for the same random seed. */
  function continued(model, ids, choice, count) {
    const reader = model.reader(ids);
    const random = TinyGPT.random(1337);
    const write = model.tokens.writer();
    let text = "";
    while (count--) {
      const id = TinyGPT.draw(TinyGPT.probabilities(reader.logits, choice).topP, random());
      if (id === model.end) break;
      text += write(id);
      reader.push(id);
    }
    return text;
  }

  /** The settings of the sliders. */
  const choice = () => ({
    temperature: Number($("temperature").value),
    topK: Number($("top-k").value),
    topP: Number($("top-p").value),
  });

  /** A cell of a table with a probability as a bar and in percent. */
  function barCell(p = 0) {
    const cell = make("td", { "data-p": p, class: p > 0 ? "" : "gone" }, make("span", { class: "bar" }), percent(p));
    cell.firstChild.style.setProperty("--p", p);
    return cell;
  }

  /** A token's text, with visible characters for white space and without the brackets of a special token. */
  function shown(token) {
    const names = { " ": "␣", "\n": "↵", "\t": "⇥" };
    return token.replace(/^<\|(.+)\|>$/, "$1").replace(/[ \n\t]/g, (blank) => names[blank]);
  }

  // ---- models ------------------------------------------------------------------------------------------------------

  /**
   * All models of the page, each made when it is first used: {label, run, step, main, answers, model}.
   *
   * `run`: index in data.models. The first run's come first, in the order of their steps: its snapshots, and its best
   * model, which is `main`.
   */
  let versions = [];

  function listVersions() {
    versions = data.models.flatMap(({ name, step, answers, packed }, run) => {
      const names = [...(data.models.length > 1 ? [name] : []), ...(run === 0 ? ["best model"] : [])];
      const best = [...names, `step ${number(step)}`].join(", ");
      const version = (label, at, snapshot) => {
        let model = null;
        return { label, run, step: at, main: run === 0 && snapshot === null, answers, get model() { return (model ??= TinyGPT.load(packed, snapshot)); } };
      };
      const snapshots = (packed.snapshots ?? []).map((one, index) => version(`step ${number(one.step)}`, one.step, index));
      return [...snapshots, version(best, step, null)].sort((a, b) => a.step - b.step);
    });
  }

  // ---- samples over training ---------------------------------------------------------------------------------------

  function setupSamples() {
    if (!$("moments")) return;
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

  function setupLosses() {
    if (!$("guess")) return;
    for (const passage of document.querySelectorAll(".cells[data-split]")) {
      const cells = data.cells[passage.dataset.split];
      choosable(passage, (span) => cells[span.dataset.i], (span) => describe(span.textContent, cells[span.dataset.i]));
    }
  }

  /** Let the reader choose one of a text's characters, `span[data-i]`, by pointer or by arrow keys. */
  function choosable(text, permitted, chosen) {
    const characters = [...text.querySelectorAll("span[data-i]")].filter(permitted);
    let at = characters[0];
    const choose = (span) => {
      for (const old of text.closest("section").querySelectorAll("[data-i].at")) old.classList.remove("at");
      at.tabIndex = -1;
      at = span;
      at.tabIndex = 0;
      at.classList.add("at");
      chosen(span);
    };
    if (at) at.tabIndex = 0;
    for (const type of ["pointerover", "focusin", "click"]) {
      text.addEventListener(type, ({ target }) => characters.includes(target) && choose(target));
    }
    text.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20 }[event.key];
      if (!steps) return;
      event.preventDefault();
      choose(characters[clamp(characters.indexOf(at) + steps, 0, characters.length - 1)]);
      at.focus();
    });
    return choose;
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

  // ---- one step, explained -----------------------------------------------------------------------------------------

  function setupStep() {
    if (!$("step-text")) return;
    const cells = data.step;
    const choose = choosable($("step-text"), (span) => cells[span.dataset.i].top, (span) => explain(span.textContent, cells[span.dataset.i]));
    const all = [...$("step-text").querySelectorAll("span[data-i]")].filter((span) => cells[span.dataset.i].top);
    choose(all[Math.min(all.length >> 2, 16)]); // some text precedes it
  }

  function explain(text, { p, loss, sum, top }) {
    const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(3)}`;
    const raised = (power) => [...String(Number(power))].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
    const size = (x) => (x >= 1e5 || x < 1e-2 ? x.toExponential(2).replace(/e(.+)/, (_, power) => ` · 10${raised(power)}`) : x.toPrecision(4));
    const rows = top.map(([token, z, chance, gradient]) => {
      const row = make("tr", gradient < 0 ? { class: "own" } : {}, make("th", { scope: "row" }, shown(token)));
      row.append(...[signed(z), size(Math.exp(z)), chance.toFixed(4), signed(gradient)].map((cell) => make("td", {}, cell)));
      return row;
    });
    $("step-logits").tBodies[0].replaceChildren(...rows);
    $("step-lead").replaceChildren("The model has read everything before ", make("b", {}, shown(text)), ". The table shows its most probable predictions; what really follows is in bold:");
    $("step-loss").replaceChildren("The sum of e", make("sup", {}, "z"), ` over the vocabulary is ${size(sum)}, so the loss of “${shown(text)}” is −ln ${p.toFixed(4)} = `, make("b", {}, loss.toFixed(3)), ".");
  }

  listVersions();
  setupSamples();
  setupLosses();
  setupStep();

  return { $, percent, number, make, barCell, shown, encode, choice, continued, choosable, get data() { return data; }, get versions() { return versions; } };
})();
