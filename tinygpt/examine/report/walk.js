// A walk through one prediction, the one that the bars show: seven operations, each in a sentence and a picture of the
// model's own values. A drawing of the model leads to the operation of each of its parts.

const Walk = (() => {
  "use strict";

  const { $, make, shown, percent, barCell } = Page;
  const COLUMNS = 64; // cells in a row of a vector
  const LATEST = 24; // tokens that are shown with their ids
  const MOST = 8; // tokens that are shown with their probabilities
  const SUM = 5; // the operation in which all blocks take part
  const { unit } = $("walk")?.dataset ?? {};
  let seen = null; // the values of the prediction
  let at = 0; // the operation that is shown
  let block = 0; // whose attention and MLP are shown

  const quoted = (id) => `“${shown(seen.model.vocabulary[id])}”`;
  const last = () => seen.ids.at(-1);

  const STEPS = [
    {
      name: "Text",
      sentence: () => `The model reads the last ${seen.ids.length} ${unit}s before the cursor, and predicts which ${unit} follows ${quoted(last())}.`,
      picture: () => [text(() => 0)],
    },
    {
      name: "Tokens",
      sentence: () => `Each ${unit} becomes its token id, one of the numbers from 0 to ${seen.model.vocabulary.length - 1}.`,
      picture: () => [make("ol", { class: "ids" }, ...seen.ids.slice(-LATEST).map((id) => make("li", {}, shown(seen.model.vocabulary[id]), make("small", {}, id))))],
    },
    {
      name: "Embedding",
      sentence: () => {
        const { wpe, wbe } = seen.model;
        const more = [wpe && "that of its position", wbe && `that of the pair with the ${unit} before`].filter(Boolean).join(" and ");
        return `Row ${last()} of the embedding table is the vector of ${quoted(last())}${more && `, to which ${more} is added`}.`;
      },
      picture: () => [vector("the embedding", seen.embedding)],
    },
    {
      name: "Attention",
      sentence: () => {
        const row = seen.attention[block][0];
        const most = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 2);
        return `Head 1 of block ${block + 1} takes information from the ${unit}s read so far, most of it from ${most.map((i) => `${quoted(seen.ids[i])} (${percent(row[i])})`).join(" and ")}.`;
      },
      picture: () => [text((i) => seen.attention[block][0][i])],
    },
    {
      name: "MLP",
      sentence: () => `The MLP of block ${block + 1} computes ${seen.hidden[block].length} activations, of which ${seen.hidden[block].filter((x) => x > 0).length} are above zero.`,
      picture: () => [vector(`the activations of block ${block + 1}`, seen.hidden[block])],
    },
    {
      name: "Sum",
      sentence: () => "Each block adds the output of its attention and that of its MLP to the vector.",
      picture: () => [vector("the embedding", seen.embedding), ...seen.residual.map((x, i) => vector(`after block ${i + 1}`, x))],
    },
    {
      name: "Probabilities",
      sentence: () => `The final norm and the output matrix turn the vector into a score for each of the ${seen.raw.length} tokens, and softmax turns the scores into probabilities.`,
      picture: () => {
        const ids = [...seen.raw.keys()].sort((a, b) => seen.raw[b] - seen.raw[a]).slice(0, MOST);
        const rows = ids.map((id) => make("tr", {}, make("th", { scope: "row" }, shown(seen.model.vocabulary[id])), barCell(seen.raw[id])));
        return [make("table", { class: "bars two" }, make("tbody", {}, ...rows))];
      },
    },
  ];

  /** The text that is read; the more a position counts, the stronger its colour. */
  function text(share) {
    const spans = seen.ids.map((id, i) => {
      const span = make("span", i === seen.ids.length - 1 ? { class: "from" } : {}, shown(seen.model.vocabulary[id]));
      span.style.setProperty("--a", Math.sqrt(share(i)));
      return span;
    });
    return make("p", { class: "text looked" }, ...spans);
  }

  /** A vector as cells: positive values in blue, negative ones in orange. */
  function vector(name, values) {
    const caption = `${name}: ${values.length} values from ${Math.min(...values).toFixed(2)} (orange) to ${Math.max(...values).toFixed(2)} (blue)`;
    const canvas = make("canvas", { width: Math.min(values.length, COLUMNS), height: Math.ceil(values.length / COLUMNS), "aria-hidden": true });
    const context = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const most = Math.max(...values.map(Math.abs));
    values.forEach((value, i) => {
      context.fillStyle = style.getPropertyValue(value > 0 ? "--accent" : "--hot");
      context.globalAlpha = Math.abs(value) / (most || 1);
      context.fillRect(i % COLUMNS, Math.floor(i / COLUMNS), 1, 1);
    });
    canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
    return make("figure", {}, canvas, make("figcaption", {}, caption));
  }

  function show() {
    const { name, sentence, picture } = STEPS[at];
    $("walk-said").replaceChildren(make("b", {}, `${at + 1} of ${STEPS.length}, ${name.toLowerCase()}. `), sentence());
    $("walk-picture").replaceChildren(...picture());
    for (const part of $("parts").querySelectorAll("button")) {
      const { step, block: its } = part.dataset;
      part.setAttribute("aria-current", Number(step) === at && (at === SUM || !its || Number(its) === block) ? "step" : "false");
    }
  }

  /** Show an operation, which a screen reader then reads; what changes with the text is not read. */
  function go(step, its = block) {
    at = (step + STEPS.length) % STEPS.length;
    block = its;
    $("walk-said").setAttribute("aria-live", "polite");
    show();
    setTimeout(() => $("walk-said").setAttribute("aria-live", "off"), 1000);
  }

  /** Show the prediction of a reader that has recorded its last token. */
  function look(reader) {
    const { model, ids, state, logits } = reader;
    const { attention, trace } = state;
    seen = { ...trace, model, attention, ids: ids.slice(-attention[0][0].length), raw: TinyGPT.probabilities(logits).raw };
    show();
  }

  function setup({ n_layer }) {
    const part = (label, step, its, whose = "") => {
      const button = make("button", { type: "button", "data-step": step, "data-block": its ?? "", "aria-label": label + whose }, label);
      button.addEventListener("click", () => go(step, its));
      return button;
    };
    const blocks = Array.from({ length: n_layer }, (_, i) => {
      const whose = ` of block ${i + 1}`;
      return make("span", { class: "block" }, part(`block ${i + 1}`, SUM), part("attention", 3, i, whose), part("MLP", 4, i, whose));
    });
    $("parts").append(part("tokens", 1), part("embedding", 2), ...blocks, part("final norm", 6), part("output", 6));
    $("walk-back").addEventListener("click", () => go(at - 1));
    $("walk-on").addEventListener("click", () => go(at + 1));
    $("walk").addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      go(at + step);
    });
  }

  return { setup, look };
})();
