// Attention: all heads of the model that the reader writes with, one head, one character. `spansOf` is
// for the walk, too.

const Attention = (() => {
  "use strict";

  const { $, make, shown, percent } = Page;
  const WINDOW = 64; // most characters that are shown
  const chosen = { layer: 0, head: 0 };
  let seen = { ids: [], weights: [] };
  let model = null;

  /** {ids, weights} of the last WINDOW ids: weights[position][layer][head] are those of the positions up to this one. */
  function weightsOf(model, ids) {
    const last = ids.slice(-Math.min(WINDOW, model.config.block_size));
    const state = model.start();
    const weights = last.map((id) => {
      state.read(id, true);
      return state.attention;
    });
    return { ids: last, weights };
  }

  /** One head's weights as a picture, a pixel for each pair of positions. */
  function paint(canvas, { ids, weights }, layer, head) {
    canvas.width = canvas.height = ids.length;
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    weights.forEach((position, row) =>
      position[layer][head].forEach((weight, column) => {
        context.globalAlpha = Math.sqrt(weight); // makes small weights visible
        context.fillRect(column, row, 1, 1);
      }),
    );
  }

  /** A text, an element for each token. */
  function spansOf(model, ids) {
    return ids.map((id, place) => {
      const text = model.vocabulary[id];
      const isSpecial = Object.values(model.special).includes(id);
      return make("span", { "data-place": place }, isSpecial ? `[${shown(text)}]` : text === "\n" ? "↵\n" : text);
    });
  }

  /** Show the attention of a model that reads `ids`. */
  function look(newModel, ids) {
    model = newModel;
    seen = weightsOf(model, ids);
    for (const button of $("heads").children) {
      paint(button.firstChild, seen, Number(button.dataset.layer), Number(button.dataset.head));
    }
    showHead();
  }

  function showHead() {
    const { layer, head } = chosen;
    for (const button of $("heads").children) {
      button.setAttribute("aria-pressed", button.dataset.layer == layer && button.dataset.head == head);
    }
    paint($("matrix"), seen, layer, head);
    $("which").textContent = `Layer ${layer + 1}, head ${head + 1}`;
    $("matrix").setAttribute("aria-label", `Weights of layer ${layer + 1}, head ${head + 1}`);
    const spans = spansOf(model, seen.ids);
    for (const span of spans) span.tabIndex = 0;
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
    $("looks").textContent = `“${shown(model.vocabulary[seen.ids[place]])}” attends most to ${most.map(name).join(", ")}.`;
  }

  /** The position whose row is at this height of the large picture. */
  function rowAt(height) {
    const row = Math.floor((height / $("matrix").clientHeight) * seen.ids.length);
    return Math.max(0, Math.min(row, seen.ids.length - 1));
  }

  /** A button with a picture for each head. */
  function setup({ n_layer, n_head }) {
    $("heads").style.setProperty("--heads", n_head);
    for (let layer = 0; layer < n_layer; layer++) {
      for (let head = 0; head < n_head; head++) {
        const label = `layer ${layer + 1}, head ${head + 1}`;
        const button = make("button", { type: "button", "data-layer": layer, "data-head": head, "aria-label": label }, make("canvas", {}), label);
        button.addEventListener("click", () => {
          Object.assign(chosen, { layer, head });
          showHead();
        });
        $("heads").append(button);
      }
    }
    for (const type of ["pointermove", "pointerdown"]) {
      $("matrix").addEventListener(type, ({ offsetY }) => seen.ids.length && lookFrom(rowAt(offsetY)));
    }
    for (const type of ["pointerover", "focusin", "click"]) {
      $("looked").addEventListener(type, ({ target }) => target.dataset.place && lookFrom(Number(target.dataset.place)));
    }
  }

  return { setup, look, spansOf };
})();
