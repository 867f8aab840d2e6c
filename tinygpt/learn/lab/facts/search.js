// What `tinygpt ask` does, for the page of `tinygpt lab facts`: passages, a search, and a model that reads.
//
// It computes what tinygpt/use/ask does with its defaults: passages, BM25, the prompt of the tiny reader, its response.
// Some things are simpler: words are not reduced to their stems and keep their accents, a passage that does not fit the
// context is left out instead of shortened, and an answer that is not in the passage it cites is not rejected.
// tests/learn/test_lab.py compares the answers with those of Python.
//
//   const passages = Facts.passages({ "norvik.md": "# Norvik ..." });
//   const hits = Facts.search(passages, "Who heads Norvik?", 3);
//   Facts.read(reader, "Who heads Norvik?", hits);          // {text, probability, cited, score}
//   Facts.recite(closedBook, "Who heads Norvik?");          // {text, probability}

const Facts = (() => {
  "use strict";

  const K1 = 1.2;
  const B = 0.75;
  const TITLE = 4; // a word of the headings counts as much as four of the text
  const LONGEST = 96; // tokens of a response
  const UNANSWERABLE = "not in the documents";

  const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];

  /** A passage for each section of Markdown documents: {source, title, text}; the title has all headings above it. */
  function passages(documents) {
    const found = [];
    for (const [source, content] of Object.entries(documents)) {
      const open = [];
      let lines = [];
      const end = () => {
        const text = lines.join(" ").replace(/\s+/g, " ").trim();
        if (text) found.push({ source, title: open.filter(Boolean).join(" > "), text });
        lines = [];
      };
      for (const line of content.split("\n")) {
        const heading = line.match(/^(#{1,6})\s+(.*)/);
        if (heading) {
          end();
          open.length = heading[1].length - 1;
          open.push(heading[2].trim());
        } else lines.push(line);
      }
      end();
    }
    return found;
  }

  /** The passages with the highest BM25, best first, each with its score: BM25 as a share of an upper bound. */
  function search(all, question, count) {
    const terms = [...new Set(words(question))];
    const bags = all.map(({ title, text }) => {
      const bag = new Map();
      const [ofTitle, ofText] = [words(title), words(text)];
      for (const word of ofTitle) bag.set(word, (bag.get(word) ?? 0) + TITLE);
      for (const word of ofText) bag.set(word, (bag.get(word) ?? 0) + 1);
      return { bag, length: ofTitle.length + ofText.length };
    });
    const mean = bags.reduce((sum, { length }) => sum + length, 0) / Math.max(bags.length, 1);
    const frequency = new Map(terms.map((term) => [term, bags.filter(({ bag }) => bag.has(term)).length]));
    const rarity = (term) => (bags.length - frequency.get(term) + 0.5) / (frequency.get(term) + 0.5);
    const bound = (K1 + 1) * terms.reduce((sum, term) => sum + Math.log(1 + rarity(term)), 0);
    const score = ({ bag, length }) => {
      let sum = 0;
      for (const term of terms) {
        const tf = bag.get(term) ?? 0;
        sum += (Math.max(Math.log(rarity(term)), 1e-6) * tf * (K1 + 1)) / (tf + K1 * (1 - B + (B * length) / mean));
      }
      return sum / bound;
    };
    return all
      .map((passage, index) => ({ ...passage, score: score(bags[index]) }))
      .filter((passage) => passage.score > 0)
      .sort((a, b) => b.score - a.score)
      .slice(0, count);
  }

  const room = (model) => Math.min(LONGEST, Math.floor(model.config.block_size / 3));

  /** The greedy response to a prompt: {text, probability}. */
  function respond(model, prompt) {
    const { special } = model;
    const reader = model.reader([special["<|prompt|>"], ...model.encode(prompt).ids, special["<|response|>"]]);
    const ids = [];
    let probability = 1;
    for (;;) {
      const { raw } = TinyGPT.probabilities(reader.logits);
      const end = special["<|end|>"];
      const id = ids.length < room(model) ? raw.reduce((best, p, i) => (p > raw[best] ? i : best), 0) : end;
      probability *= raw[id];
      if (id === end) return { text: model.decode(ids).trim(), probability };
      ids.push(id);
      reader.push(id);
    }
  }

  /** The answer of the tiny reader: {text, probability, cited}; the text is empty if it finds none. */
  function read(model, question, hits) {
    const chosen = [];
    const prompt = () => [question, ...chosen.map((line, index) => `[${index + 1}] ${line}`)].join("\n");
    for (const { title, text } of hits) {
      chosen.push(`${title}: ${text}`);
      if (model.encode(prompt()).ids.length + 2 > model.config.block_size - room(model)) chosen.pop();
    }
    if (!chosen.length) return { text: "", probability: 0, cited: 0 };
    const { text, probability } = respond(model, prompt());
    const found = text.match(/(?:\[\d{1,3}\] no )*\[(\d{1,3})\] ?(.*)$/s); // "chair of Norvik [1] no [2] Ana Torres"
    const answer = found ? found[2] : text;
    const none = !answer || answer === "no" || text.includes(UNANSWERABLE);
    return { text: none ? "" : answer, probability, cited: found && !none ? Number(found[1]) : 0 };
  }

  /** The answer of a closed-book model: {text, probability}. */
  function recite(model, question) {
    const { text, probability } = respond(model, question);
    return { text: text === UNANSWERABLE ? "" : text, probability };
  }

  return { passages, search, read, recite };
})();
