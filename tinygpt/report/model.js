// The model in the page: a trained tinygpt continues a text in plain JavaScript, without a library or a network.
//
// The same mathematics as tinygpt/model.py, one position at a time as in tinygpt/fast/decoder.py, with the window and the
// draw of tinygpt/generate.py; tests/test_report_model.py compares the numbers.
//
//   const model = TinyGPT.load(packed);                         // packed: the object described below
//   const reader = model.reader(model.encode("ROMEO:").ids);    // at least one id
//   const stages = TinyGPT.probabilities(reader.logits, { temperature: 0.8, topK: 0, topP: 0.95 });
//   reader.push(TinyGPT.draw(stages.topP, random()));           // const random = TinyGPT.random(1337)
//
// The packed format, which tinygpt/report/weights.py writes:
//
//   format   1; any other number is refused
//   config   the fields of tinygpt's GPTConfig
//   symbols  one string for each id: a character, or the name of a mark
//   special  {mark: id}: symbols that are no characters; no text is encoded as one
//   dtype    "float16" or "float32": the numbers in `data`
//   data     base64 of all weights behind each other, little-endian
//   tensors  {name: {shape, offset}}: nanoGPT's names; offset counts numbers, not bytes. A matrix is (out, in) and
//            lies row after row. Without a "lm_head.weight" the head is "transformer.wte.weight" (tied weights).
//
// Sizes: C = n_embd, V = vocab_size. Sums are in double precision, which is what JavaScript has.

const TinyGPT = (() => {
  "use strict";

  const FORMAT = 1;
  const NORM_EPS = 1e-5;
  const QK_EPS = 1e-6; // of queries and keys

  // ---- the packed weights ------------------------------------------------------------------------------------------

  /** All weights as one Float32Array. */
  function unpack({ dtype, data }) {
    const text = atob(data);
    const bytes = new DataView(new ArrayBuffer(text.length));
    for (let i = 0; i < text.length; i++) bytes.setUint8(i, text.charCodeAt(i));
    const half = dtype === "float16";
    const numbers = new Float32Array(text.length / (half ? 2 : 4));
    for (let i = 0; i < numbers.length; i++) {
      numbers[i] = half ? fromHalf(bytes.getUint16(2 * i, true)) : bytes.getFloat32(4 * i, true);
    }
    return numbers;
  }

  /** IEEE 754 half precision: a sign bit, 5 bits of exponent, 10 of fraction. (Infinities are never packed.) */
  function fromHalf(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  }

  /** A packed model, ready to read. Errors: Error for another format. */
  function load(packed) {
    return new Model(packed);
  }

  class Model {
    constructor(packed) {
      if (packed.format !== FORMAT) throw new Error(`the model has format ${packed.format}, this page reads ${FORMAT}`);
      this.config = packed.config;
      this.symbols = packed.symbols;
      this.special = packed.special;
      this.idOf = new Map(packed.symbols.map((symbol, id) => [symbol, id]));

      const numbers = unpack(packed);
      const tensor = (name) => {
        if (!(name in packed.tensors)) return null;
        const { shape, offset } = packed.tensors[name];
        return numbers.subarray(offset, offset + shape.reduce((a, b) => a * b, 1));
      };
      const norm = (name) => ({ weight: tensor(`${name}.weight`), bias: tensor(`${name}.bias`) });
      const linear = (name) => {
        const [rows, columns] = packed.tensors[`${name}.weight`].shape;
        return { weight: tensor(`${name}.weight`), bias: tensor(`${name}.bias`), rows, columns };
      };
      this.wte = tensor("transformer.wte.weight"); // (V, C)
      this.wpe = tensor("transformer.wpe.weight"); // (block_size, C), with learned positions
      this.wbe = tensor("transformer.wbe.weight"); // (V * V, C), with a bigram table
      this.blocks = Array.from({ length: this.config.n_layer }, (_, layer) => {
        const name = `transformer.h.${layer}`;
        return {
          ln_1: norm(`${name}.ln_1`),
          c_attn: linear(`${name}.attn.c_attn`), // (3 C, C): query, key, value
          attn_proj: linear(`${name}.attn.c_proj`),
          ln_2: norm(`${name}.ln_2`),
          c_fc: linear(`${name}.mlp.c_fc`),
          mlp_proj: linear(`${name}.mlp.c_proj`),
        };
      });
      this.ln_f = norm("transformer.ln_f");
      this.head = linear("lm_head.weight" in packed.tensors ? "lm_head" : "transformer.wte");
    }

    /**
     * {ids, unknown}: unknown are the places, counted in characters, of those without a symbol, which are left out.
     *
     * Character by character, so no text becomes a mark, whose name is longer than one.
     */
    encode(text) {
      const ids = [];
      const unknown = [];
      [...text].forEach((character, place) => {
        if (this.idOf.has(character)) ids.push(this.idOf.get(character));
        else unknown.push(place);
      });
      return { ids, unknown };
    }

    /** The text, in which a mark stands as its name. */
    decode(ids) {
      return Array.from(ids, (id) => this.symbols[id]).join("");
    }

    start() {
      return new State(this);
    }

    reader(ids) {
      return new Reader(this, ids);
    }
  }

  // ---- one position after the other --------------------------------------------------------------------------------

  /**
   * What a model remembers of the tokens that it has read: keys and values of the last block_size positions.
   *
   * `length` counts the positions read. With rotary positions the memory rolls: position p lies in slot
   * p % block_size. With learned positions at most block_size can be read, then comes `forget`.
   */
  class State {
    constructor(model) {
      const { n_embd, n_layer, block_size } = model.config;
      this.model = model;
      this.layers = Array.from({ length: n_layer }, () => ({
        keys: new Float32Array(block_size * n_embd), // (n_head, block_size, head_dim)
        values: new Float32Array(block_size * n_embd),
        // for token_shift: the first half of what attention and the MLP read at the position before
        before: [new Float64Array(n_embd >> 1), new Float64Array(n_embd >> 1)],
      }));
      // everything that a step writes, allocated once
      this.x = new Float64Array(n_embd); // the residual stream
      this.normed = new Float64Array(n_embd);
      this.qkv = new Float64Array(3 * n_embd);
      this.mixed = new Float64Array(n_embd); // what attention has gathered
      this.hidden = new Float64Array(model.blocks[0].c_fc.rows);
      this.scores = new Float64Array(block_size);
      this.angles = new Float64Array(n_embd / model.config.n_head); // cosines, then sines
      this.logits = new Float64Array(model.head.rows);
      this.forget();
    }

    /** Start anew at position 0. */
    forget() {
      this.length = 0;
      this.last = 0; // the token before, for bigrams: symbol 0 stands before the first
      this.attention = null;
      for (const { before } of this.layers) before.forEach((half) => half.fill(0));
    }

    /**
     * Read one more token; returns the logits of the next, a new Float32Array (V).
     *
     * wantAttention: `attention[layer][head]` is then a Float32Array over the positions that were looked at, from the
     * oldest to this one; it sums to one. Errors: Error for an id that is none, and for a window that is full.
     */
    read(id, wantAttention = false) {
      const { model, x, normed, hidden } = this;
      const { config } = model;
      if (!Number.isInteger(id) || id < 0 || id >= config.vocab_size) throw new Error(`no symbol has the id ${id}`);
      const rotary = config.position === "rope";
      if (!rotary && this.length >= config.block_size) throw new Error("the window is full: forget() and read again");
      this.embed(id);
      if (rotary) setAngles(this.angles, this.length);
      this.attention = wantAttention ? [] : null;
      for (let layer = 0; layer < config.n_layer; layer++) {
        const block = model.blocks[layer];
        const memory = this.layers[layer];
        normalise(block.ln_1, x, normed, config.norm);
        if (config.token_shift) shift(normed, memory.before[0]);
        multiply(block.c_attn, normed, this.qkv);
        this.attend(memory);
        multiply(block.attn_proj, this.mixed, x, true);
        normalise(block.ln_2, x, normed, config.norm);
        if (config.token_shift) shift(normed, memory.before[1]);
        multiply(block.c_fc, normed, hidden);
        activate(hidden, config.activation);
        multiply(block.mlp_proj, hidden, x, true);
      }
      normalise(model.ln_f, x, normed, config.norm);
      multiply(model.head, normed, this.logits);
      this.length += 1;
      this.last = id;
      return new Float32Array(this.logits);
    }

    embed(id) {
      const { x, model } = this;
      const C = x.length;
      const pair = this.last * model.config.vocab_size + id;
      for (let i = 0; i < C; i++) {
        x[i] = model.wte[id * C + i];
        if (model.wpe) x[i] += model.wpe[this.length * C + i];
        if (model.wbe) x[i] += model.wbe[pair * C + i];
      }
    }

    /** Each head: softmax(q k / sqrt(head_dim)) v over the positions remembered, this one among them. */
    attend({ keys, values }) {
      const { qkv, mixed, scores } = this;
      const { n_head, n_embd: C, block_size, qk_norm, position } = this.model.config;
      const size = C / n_head; // head_dim
      const slot = this.length % block_size;
      const filled = Math.min(this.length + 1, block_size);
      const rows = [];
      for (let head = 0; head < n_head; head++) {
        const q = head * size;
        const k = C + q;
        const v = 2 * C + q;
        if (qk_norm) {
          toUnit(qkv, q, size);
          toUnit(qkv, k, size);
        }
        if (position === "rope") {
          rotate(qkv, q, this.angles);
          rotate(qkv, k, this.angles);
        }
        const start = head * block_size * size; // of this head's keys and values
        for (let i = 0; i < size; i++) {
          keys[start + slot * size + i] = qkv[k + i];
          values[start + slot * size + i] = qkv[v + i];
        }
        for (let past = 0; past < filled; past++) {
          const key = start + past * size;
          let sum = 0;
          for (let i = 0; i < size; i++) sum += qkv[q + i] * keys[key + i];
          scores[past] = sum / Math.sqrt(size);
        }
        softmax(scores, filled);
        mixed.fill(0, q, q + size);
        for (let past = 0; past < filled; past++) {
          const value = start + past * size;
          for (let i = 0; i < size; i++) mixed[q + i] += scores[past] * values[value + i];
        }
        if (this.attention) {
          const oldest = this.length + 1 - filled;
          rows.push(Float32Array.from({ length: filled }, (_, i) => scores[(oldest + i) % block_size]));
        }
      }
      if (this.attention) this.attention.push(rows);
    }
  }

  /**
   * W x + b into `out`, or `onto` what is there; W (rows, columns).
   *
   * Nearly all of the time is spent here. Four rows at once: a number of x is loaded for four products, and four sums
   * need not wait for each other.
   */
  function multiply({ weight, bias, rows, columns }, x, out, onto = false) {
    if (!onto) out.fill(0);
    if (bias) for (let row = 0; row < rows; row++) out[row] += bias[row];
    let row = 0;
    for (; row + 4 <= rows; row += 4) {
      const w0 = row * columns;
      const w1 = w0 + columns;
      const w2 = w1 + columns;
      const w3 = w2 + columns;
      let sum0 = 0;
      let sum1 = 0;
      let sum2 = 0;
      let sum3 = 0;
      for (let i = 0; i < columns; i++) {
        const number = x[i];
        sum0 += weight[w0 + i] * number;
        sum1 += weight[w1 + i] * number;
        sum2 += weight[w2 + i] * number;
        sum3 += weight[w3 + i] * number;
      }
      out[row] += sum0;
      out[row + 1] += sum1;
      out[row + 2] += sum2;
      out[row + 3] += sum3;
    }
    for (; row < rows; row++) {
      let sum = 0;
      for (let i = 0; i < columns; i++) sum += weight[row * columns + i] * x[i];
      out[row] += sum;
    }
  }

  /** LayerNorm, or RMSNorm, which has no mean and no bias, of x into `out`. */
  function normalise({ weight, bias }, x, out, kind) {
    const C = x.length;
    let mean = 0;
    if (kind === "layernorm") for (let i = 0; i < C; i++) mean += x[i];
    mean /= C;
    let squares = 0;
    for (let i = 0; i < C; i++) squares += (x[i] - mean) * (x[i] - mean);
    const scale = 1 / Math.sqrt(squares / C + NORM_EPS);
    for (let i = 0; i < C; i++) out[i] = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }

  /** The `size` numbers from `start` on, divided by the root of their mean square. */
  function toUnit(x, start, size) {
    let squares = 0;
    for (let i = start; i < start + size; i++) squares += x[i] * x[i];
    const scale = 1 / Math.sqrt(squares / size + QK_EPS);
    for (let i = start; i < start + size; i++) x[i] *= scale;
  }

  /** Token shift: the first half of x is swapped with that of the position before, which is what `before` remembers. */
  function shift(x, before) {
    for (let i = 0; i < before.length; i++) {
      const now = x[i];
      x[i] = before[i];
      before[i] = now;
    }
  }

  /**
   * Cosines, then sines of the angles by which position p turns its pairs (Su et al. 2021).
   *
   * Rounded to float32 where Python rounds, which at position 10,000 moves an angle by up to 0.0005.
   */
  function setAngles(angles, p) {
    const half = angles.length / 2;
    for (let i = 0; i < half; i++) {
      const frequency = Math.fround(10000 ** Math.fround(-i / half));
      const angle = Math.fround(p * frequency);
      angles[i] = Math.cos(angle);
      angles[half + i] = Math.sin(angle);
    }
  }

  /** Turn each pair (x[i], x[i + head_dim / 2]), counted from `start`: the "half" layout of GPT-NeoX and Llama. */
  function rotate(x, start, angles) {
    const half = angles.length / 2;
    for (let i = 0; i < half; i++) {
      const a = x[start + i];
      const b = x[start + half + i];
      x[start + i] = a * angles[i] - b * angles[half + i];
      x[start + half + i] = b * angles[i] + a * angles[half + i];
    }
  }

  /** gelu, relu2 (the square of what is positive), or swiglu, which leaves its result in the first half. */
  function activate(x, kind) {
    if (kind === "swiglu") {
      const half = x.length / 2;
      for (let i = 0; i < half; i++) x[i] *= x[half + i] / (1 + Math.exp(-x[i]));
    } else if (kind === "relu2") {
      for (let i = 0; i < x.length; i++) x[i] = Math.max(x[i], 0) ** 2;
    } else {
      for (let i = 0; i < x.length; i++) x[i] *= (1 + erf(x[i] * Math.SQRT1_2)) / 2;
    }
  }

  /**
   * The error function, within 1e-10: 2 / sqrt(pi) exp(-z^2) (z + 2 z^3 / 3 + 4 z^5 / (3 5) + ...), which is Abramowitz
   * and Stegun's 7.1.6. Its terms have one sign, so none are lost to rounding. Beyond 5 it is one within 2e-12.
   */
  function erf(z) {
    if (Math.abs(z) > 5) return Math.sign(z);
    let sum = z;
    for (let n = 1, term = z; Math.abs(term) > 1e-11 * Math.abs(sum); n++) {
      term *= (2 * z * z) / (2 * n + 1);
      sum += term;
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-z * z) * sum;
  }

  /** The first `count` numbers, in place, to a distribution. The largest is taken off first, so none overflows. */
  function softmax(x, count = x.length) {
    let largest = -Infinity;
    for (let i = 0; i < count; i++) largest = Math.max(largest, x[i]);
    let sum = 0;
    for (let i = 0; i < count; i++) {
      x[i] = Math.exp(x[i] - largest);
      sum += x[i];
    }
    for (let i = 0; i < count; i++) x[i] /= sum;
    return x;
  }

  // ---- a text longer than the window -------------------------------------------------------------------------------

  /**
   * A text and the logits of what follows it, as `generate` of tinygpt/generate.py has them: of a long text the last
   * block_size tokens are read; when a window of learned positions is full, it is filled anew with its last half.
   */
  class Reader {
    /** Errors: Error for no ids: a model predicts from something. */
    constructor(model, ids) {
      if (!ids.length) throw new Error("there is nothing to read: give at least one id");
      this.model = model;
      this.state = model.start();
      this.ids = Array.from(ids);
      this.readLast(model.config.block_size);
    }

    /** Append one id, and read it. */
    push(id) {
      const { config } = this.model;
      this.ids.push(id);
      if (config.position === "rope" || this.state.length < config.block_size) {
        this.logits = this.state.read(id);
      } else {
        this.state.forget();
        this.readLast(Math.max(1, config.block_size >> 1));
      }
    }

    readLast(count) {
      for (const id of this.ids.slice(-count)) this.logits = this.state.read(id);
    }
  }

  // ---- the next token ----------------------------------------------------------------------------------------------

  /**
   * Logits to distributions, one after each stage: {raw, temperature, topK, topP}, each a Float64Array (V).
   *
   * raw is the model's own; the last is the one to draw from. Temperature 0 puts everything on the likeliest; topK
   * keeps the k likeliest (0: all) and what ties with the last of them; topP keeps the fewest that reach p (nucleus
   * sampling, Holtzman et al. 2020).
   */
  function probabilities(logits, { temperature = 1, topK = 0, topP = 1 } = {}) {
    const raw = softmax(new Float64Array(logits));
    const largest = logits.reduce((a, b) => Math.max(a, b));
    if (temperature === 0) {
      const likeliest = new Float64Array(logits.length);
      likeliest[logits.indexOf(largest)] = 1;
      return { raw, temperature: likeliest, topK: likeliest.slice(), topP: likeliest.slice() };
    }
    // rounded to float32 as in Python: what ties there ties here; from the top, so that a tiny temperature fits too
    const top = temperature < 1e-3 ? largest : 0;
    const divisor = Math.max(temperature, 1e-30);
    const scaled = Float64Array.from(logits, (logit) => Math.fround(Math.fround(logit - top) / divisor));
    const cooled = softmax(scaled.slice());
    let kept = cooled;
    if (topK > 0 && topK < scaled.length) {
      const kth = scaled.slice().sort()[scaled.length - topK];
      kept = softmax(scaled.map((logit) => (logit < kth ? -Infinity : logit)));
    }
    return { raw, temperature: cooled, topK: kept.slice(), topP: topP < 1 ? nucleus(kept, topP) : kept.slice() };
  }

  /**
   * The likeliest tokens that together reach p, the others 0; the first always stays.
   *
   * Whether p is reached is asked in float32, as in Python: of ten equal chances p = 0.9 keeps nine in both, and of
   * three p = 2/3 keeps all.
   */
  function nucleus(chances, p) {
    const kept = new Float64Array(chances.length);
    let sum = 0;
    for (const id of [...chances.keys()].sort((a, b) => chances[b] - chances[a])) {
      const chance = Math.fround(chances[id]);
      const before = Math.fround(Math.fround(sum + chance) - chance);
      if (sum > 0 && before >= Math.fround(p)) break;
      kept[id] = chances[id];
      sum += chance;
    }
    const total = kept.reduce((a, b) => a + b);
    return kept.map((chance) => chance / total);
  }

  /** Numbers in [0, 1), the same for the same seed: Tommy Ettinger's Mulberry32 (2017), of period 2^32. */
  function random(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let bits = Math.imul(state ^ (state >>> 15), state | 1);
      bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
      return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  /** The id at which the chances p, added up, pass u in [0, 1). */
  function draw(p, u) {
    let sum = 0;
    let last = 0;
    for (let id = 0; id < p.length; id++) {
      if (p[id] > 0) last = id; // the sum may end a rounding error below u
      sum += p[id];
      if (u < sum) return id;
    }
    return last;
  }

  return { load, probabilities, random, draw };
})();

if (typeof module !== "undefined") module.exports = TinyGPT;
