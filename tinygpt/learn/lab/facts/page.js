// The controls of the page of `tinygpt lab facts`.
(() => {
  "use strict";

  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const [reader, closedBook] = [data.reader, data.closed].map((packed) => TinyGPT.load(packed));
  const documents = { ...data.documents };
  const { min_score, min_probability } = data.thresholds; // of tinygpt ask

  const companyOf = () => $("company").value;
  const files = (key) => Object.keys(documents).filter((name) => name === `${key}.md` || name.startsWith(`${key}-`));

  function show() {
    $("document").value = documents[`${companyOf()}.md`];
    $("suggestions").replaceChildren(
      ...data.questions[companyOf()].map((text) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = text in data.recorded ? `• ${text}` : text;
        button.addEventListener("click", () => {
          $("question").value = text;
          ask();
        });
        return button;
      }),
    );
    $("older").textContent = files(companyOf()).length > 1 ? "There is also an older document about this company." : "";
  }

  function answer(id, text, probability, why) {
    $(`${id}-answer`).textContent = text || "not in the documents";
    $(`${id}-why`).textContent = `${why}probability ${probability.toFixed(2)}`;
  }

  /** What the pretrained model answered in the lab, if this question was in its sample. */
  function showRecorded(question) {
    if (!$("recorded")) return;
    const cell = (text) => Object.assign(document.createElement("td"), { textContent: text || "not in the documents" });
    const rows = (data.recorded[question] ?? []).map(([name, before, after]) => {
      const row = document.createElement("tr");
      const head = Object.assign(document.createElement("th"), { scope: "row", textContent: name });
      row.append(head, cell(before), cell(after));
      return row;
    });
    $("recorded-none").hidden = rows.length > 0;
    $("recorded-table").hidden = rows.length === 0;
    $("recorded").replaceChildren(...rows);
  }

  function ask() {
    const question = $("question").value.replace(/\s+/g, " ").trim();
    if (!question) return;
    const hits = Facts.search(Facts.passages(documents), question, 3);
    const best = hits[0]?.score ?? 0;
    const found = hits.length ? Facts.read(reader, question, hits) : { text: "", probability: 0, cited: 0 };
    const sure = best >= min_score && found.probability >= min_probability;
    answer("reader", sure ? found.text : "", found.probability, `score of the best passage ${best.toFixed(2)}, `);
    const hit = hits[Math.max(found.cited, 1) - 1];
    $("passage").textContent = hit ? `${hit.source}, ${hit.title}: ${hit.text}` : "No passage contains a word of the question.";
    const known = Facts.recite(closedBook, question);
    answer("closed", known.text, known.probability, "");
    showRecorded(question);
    const [before, after] = data.known[question] ?? ["", ""];
    const change = before === after ? "" : `; in the lab it changed to ${after}`;
    const right = before ? `Right answer, before your edits: ${before}${change}.` : "No document answers this question.";
    $("right").textContent = question in data.known ? right : "";
  }

  $("company").replaceChildren(...Object.keys(data.questions).map((key) => new Option(data.names[key], key)));
  $("company").value = Object.keys(data.questions).find((key) => files(key).length === 1); // the simpler case
  $("company").addEventListener("change", show);
  $("document").addEventListener("input", () => {
    documents[`${companyOf()}.md`] = $("document").value;
    for (const id of ["reader", "closed"]) $(`${id}-answer`).textContent = "the document has changed: ask again";
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("restore").addEventListener("click", () => {
    Object.assign(documents, data.documents);
    show();
  });
  show();
})();
