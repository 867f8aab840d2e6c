// A walk through the prediction that the bars show: seven operations, each as a sentence and a picture of the model's own
// values. A drawing of the model leads to the operation of each part, and marks the part of each operation.

const Walk = (() => {
  "use strict";

  const { $, make, shown, percent, barCell } = Page;
  const COLUMNS = 64; // cells in a row of a vector
  const MOST = 8; // probabilities
  let seen = null; // the values of the prediction
  let at = 0; // the operation that is shown
  let block = 0; // whose attention and MLP are shown

  const token = (id) => shown(seen.model.vocabulary[id]);
  const unit = () => $("walk").dataset.unit;
  const largest = (values, count) => [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, count);

  /** Each operation returns its sentence and the elements of its picture. */
  const OPERATIONS = {
    text: ({ ids }) => [
      `The model reads ${ids.length} ${unit()}s, and predicts which ${unit()} follows “${token(ids.at(-1))}”.`,
      text(ids.map(() => 0)),
    ],
    tokens: ({ ids, raw }) => [
      `Each ${unit()} becomes its token id, one of the numbers from 0 to ${raw.length - 1}.`,
      make("ol", { class: "ids" }, ...ids.map((id) => make("li", {}, token(id), make("small", {}, id)))),
    ],
    embedding: ({ ids, model, embedding }) => [
      `The embedding table turns the last id, ${ids.at(-1)}, into a vector${model.wpe ? ", and the embedding of its position is added" : ""}.`,
      vector("embedding", embedding),
    ],
    attention({ ids, attention }) {
      const weights = attention[block][0];
      const most = largest(weights, 2).map((place) => `“${token(ids[place])}” (${ids.length - 1 - place} earlier, ${percent(weights[place])})`);
      return [`Head 1 of layer ${block + 1} takes information from the ${unit()}s so far, most from ${most.join(" and ")}.`, text(weights)];
    },
    MLP: ({ hidden }) => [
      `The MLP of layer ${block + 1} computes ${hidden[block].length} activations, of which ${hidden[block].filter((x) => x > 0).length} are positive.`,
      vector("activations", hidden[block]),
    ],
    sum: ({ embedding, residual }) => [
      "Each layer adds the output of its attention and that of its MLP to the vector.",
      ...[embedding, ...residual].map((x, i) => vector(i ? `after layer ${i}` : "embedding", x)),
    ],
    probabilities({ raw }) {
      const rows = largest(raw, MOST).map((id) => make("tr", {}, make("th", { scope: "row" }, token(id)), barCell(raw[id])));
      const sentence = `The final norm and the output matrix turn the vector into ${raw.length} scores, and softmax turns the scores into probabilities.`;
      return [sentence, make("table", { class: "bars two" }, make("tbody", {}, ...rows))];
    },
  };
  const NAMES = Object.keys(OPERATIONS);

  /** The text, each token with a share of the colour; the last one is marked. */
  function text(shares) {
    const spans = Attention.spansOf(seen.model, seen.ids);
    spans.forEach((span, place) => span.style.setProperty("--a", Math.sqrt(shares[place])));
    spans.at(-1).className = "from";
    return make("p", { class: "text looked" }, ...spans);
  }

  /** A vector as cells: positive values in blue, negative ones in orange. */
  function vector(name, values) {
    const canvas = make("canvas", { width: Math.min(values.length, COLUMNS), height: Math.ceil(values.length / COLUMNS), "aria-hidden": true });
    canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
    const context = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const colour = (value) => (value > 0 ? " (blue)" : value < 0 ? " (orange)" : "");
    values.forEach((value, i) => {
      context.fillStyle = style.getPropertyValue(value > 0 ? "--accent" : "--hot");
      context.globalAlpha = Math.sqrt(Math.abs(value) / Math.max(most, -least, 1e-9)); // makes small values visible
      context.fillRect(i % COLUMNS, Math.floor(i / COLUMNS), 1, 1);
    });
    return make("figure", {}, canvas, make("figcaption", {}, `${name}: ${values.length} values from ${least.toFixed(2)}${colour(least)} to ${most.toFixed(2)}${colour(most)}`));
  }

  function show() {
    if (!seen) return; // the reader was faster
    const [sentence, ...picture] = OPERATIONS[NAMES[at]](seen);
    $("walk-said").replaceChildren(make("b", {}, `${at + 1} of ${NAMES.length}, ${NAMES[at]}. `), sentence);
    $("walk-picture").replaceChildren(...picture);
    $("walk-back").disabled = at === 0;
    $("walk-on").textContent = at === NAMES.length - 1 ? "Start again" : "Next";
    for (const part of $("parts").querySelectorAll("button")) {
      const { operation, block: its } = part.dataset;
      part.setAttribute("aria-current", operation === NAMES[at] && (!its || Number(its) === block) ? "step" : "false");
    }
  }

  /** Show an operation. A screen reader reads its sentence now, but not whenever the text changes. */
  function go(to) {
    at = Math.max(to, 0) % NAMES.length;
    if (at === 0) $("walk-on").focus({ preventScroll: true }); // the other button can no longer have the focus
    $("walk-said").setAttribute("aria-live", "polite");
    show();
  }

  /** Show the prediction of a reader that records. */
  function look({ model, ids, state: { attention, trace }, logits }) {
    seen = { ...trace, model, attention, ids: ids.slice(-attention[0][0].length), raw: TinyGPT.probabilities(logits).raw };
    $("walk-said").setAttribute("aria-live", "off");
    show();
  }

  function setup({ n_layer }) {
    const part = (label, operation, whose = "", its = "") => {
      const button = make("button", { type: "button", "data-operation": operation, "data-block": its, "aria-label": label + whose }, label);
      button.addEventListener("click", () => {
        if (its !== "") block = its;
        go(NAMES.indexOf(operation));
      });
      return button;
    };
    const parts = Array.from({ length: n_layer }, (_, i) => {
      const whose = ` of layer ${i + 1}`;
      return make("span", {}, part(`layer ${i + 1}`, "sum"), part("attention", "attention", whose, i), part("MLP", "MLP", whose, i));
    });
    $("parts").append(part("embedding", "embedding"), ...parts, part("final norm", "probabilities"), part("output", "probabilities"));
    $("walk-back").addEventListener("click", () => go(at - 1));
    $("walk-on").addEventListener("click", () => go(at + 1));
    $("walk").addEventListener("keydown", ({ key }) => {
      if (key === "ArrowLeft") go(at - 1);
      if (key === "ArrowRight") go(at + 1);
    });
  }

  return { setup, look };
})();
