// Two models side by side: the same text, the probabilities of its next character, and how each continues it.

(() => {
  "use strict";

  const { $, make, barCell, shown, percent } = Page;
  if (!$("compare")) return; // the model is not in the page

  const MOST_ROWS = 10; // characters with a row each
  const LENGTH = 200; // characters of a continuation
  const sides = ["left", "right"];
  const chosen = { left: null, right: null }; // versions

  /** List the versions, and choose those that were chosen before: of a newer page, its best model for the earlier best. */
  function list() {
    const { versions } = Page;
    $("compare").hidden = versions.length < 2;
    const same = (a, b) => a.run === b?.run && a.main === b.main && (a.main || a.step === b.step);
    const again = (side) => versions.find((version) => same(version, chosen[side]));
    chosen.right = again("right") ?? versions.find(({ main }) => main);
    chosen.left = again("left") ?? versions.find(({ run }) => run === 1) ?? versions[0];
    for (const side of sides) {
      $(side).replaceChildren(...versions.map(({ label }, index) => make("option", { value: index }, label)));
      $(side).value = versions.indexOf(chosen[side]);
    }
    read();
  }

  const idsOf = (version) => Page.encode(version, $("compare-prompt")?.value.trim() ?? "", $("compare-text").value);

  /** Both models read the text. */
  function read() {
    const both = sides.map((side) => {
      const version = chosen[side];
      const { ids, unknown } = idsOf(version);
      return { side, version, ids, unknown, raw: TinyGPT.probabilities(version.model.reader(ids).logits).raw };
    });
    for (const { side, version } of both) $(`${side}-name`).textContent = $(`${side}-column`).textContent = version.label;
    const partly = both.filter(({ unknown }) => unknown.length);
    $("compare-note").textContent = partly.map(({ version, unknown }) => `${version.label}: ${unknown.length} character${unknown.length > 1 ? "s are" : " is"} not in its vocabulary, and left out.`).join(" ");
    showProbabilities(both);
  }

  /** The reader has changed something: what the models have written no longer belongs to it. */
  function changed() {
    for (const side of sides) $(`${side}-text`).replaceChildren(make("span", { class: "silent" }, "press Continue both"));
    read();
  }

  /** By token, since two vocabularies may differ: 0 for one that a model does not have. */
  function showProbabilities(both) {
    const [left, right] = both.map(({ version, raw }) => new Map(version.model.vocabulary.map((token, id) => [token, raw[id]])));
    const tokens = [...new Set([...left.keys(), ...right.keys()])];
    const most = (token) => Math.max(left.get(token) ?? 0, right.get(token) ?? 0);
    const first = tokens.sort((a, b) => most(b) - most(a)).slice(0, MOST_ROWS);
    $("compare-bars").tBodies[0].replaceChildren(...first.map((token) => make("tr", {}, make("th", { scope: "row" }, shown(token)), barCell(left.get(token)), barCell(right.get(token)))));
    const overlap = tokens.reduce((sum, token) => sum + Math.min(left.get(token) ?? 0, right.get(token) ?? 0), 0);
    $("overlap").textContent = `The two distributions have ${percent(overlap)} of their probability in common.`;
  }

  /** Both continue the text, with the same random numbers and the settings of the sliders. */
  function continueBoth() {
    for (const side of sides) {
      const text = Page.continued(chosen[side].model, idsOf(chosen[side]).ids, Page.choice(), LENGTH);
      $(`${side}-text`).textContent = text || "(an empty response)";
    }
  }

  for (const side of sides) {
    $(side).addEventListener("change", () => {
      chosen[side] = Page.versions[$(side).value];
      changed();
    });
  }
  $("compare-text").addEventListener("input", changed);
  $("compare-prompt")?.addEventListener("input", changed);
  $("continue-both").addEventListener("click", continueBoth);
  list();
  changed();
})();
