// The model of the page: tinygpt's GPT in plain JavaScript, without libraries and without requests.
//
// It computes what tinygpt/model.py computes, one position at a time with a cache of keys and values. The context
// window and sampling are those of tinygpt/generate.py. tests/examine/test_report_model.py compares the results with PyTorch's.
//
//   const model = TinyGPT.load(packed);                         // packed: the object described below
//   const reader = model.reader(model.encode("ROMEO:").ids);    // at least one id
//   const stages = TinyGPT.probabilities(reader.logits, { temperature: 0.8, topK: 0, topP: 0.95 });
//   reader.push(TinyGPT.draw(stages.topP, random()));           // const random = TinyGPT.random(1337)
//
// The packed format, which tinygpt/examine/report/weights.py writes:
//
//   config      the fields of tinygpt's GPTConfig
//   position    {relative, frequencies, bias}: what tinygpt/options.py computes for config.position
//                 relative     whether only distances matter, so that the context window can move
//                 frequencies  (head_dim) or null: the rotation of queries and keys, in radians per position; in a pair
//                              of channels, the first value is the negative of the second
//                 bias         (n_head, block_size) or null: added to the attention scores, by distance
//   vocabulary  one string for each id: a character, with `merges` the bytes of a token in hexadecimal ("c3a9"), or the
//               name of a special token
//   special     {name: id} of the special tokens; `encode` never returns their ids
//   end         the id of the special token that ends a response, or null
//   merges      of byte-level BPE with GPT-2's pattern: the pairs of tokens that are joined, in the order of their ranks
//               ("c3 a9"); null for a vocabulary of characters
//   dtype       of the weights in `data`: "float16" or "float32"
//   data        base64 of all weights, one tensor after another, little-endian
//   tensors     {name: {shape, offset}}: nanoGPT's names; the offset counts weights, not bytes. A matrix is (out, in),
//               stored row by row. Without "lm_head.weight" the head is "transformer.wte.weight" (tied weights).
//   snapshots   models of earlier and later steps of the training, or absent: a list of {step, from, scales, data}.
//               `data` is base64 of int8, the difference from the weights of snapshots[from], or of the model itself if
//               `from` is null; times `scales`, base64 of float16, one for each BLOCK weights
//
// Sizes: C = n_embd, V = vocab_size. Sums are in double precision, JavaScript's own.

const TinyGPT = (() => {
  "use strict";

  const QK_EPS = 1e-6; // of the normalisation of queries and keys
  const BLOCK = 128; // weights that share the scale of a difference

  // ---- the packed weights ------------------------------------------------------------------------------------------

  /** All weights as one Float32Array: those of the model, or of one of its snapshots. */
  function unpack(packed, snapshot = null) {
    if (snapshot === null) return numbers(packed.data, packed.dtype);
    const { from, scales, data } = packed.snapshots[snapshot];
    const weights = unpack(packed, from);
    const [scale, difference] = [numbers(scales, "float16"), numbers(data, "int8")];
    for (let i = 0; i < weights.length; i++) weights[i] += scale[Math.floor(i / BLOCK)] * difference[i];
    return weights;
  }

  /** Numbers of a dtype, little-endian, from base64. */
  function numbers(data, dtype) {
    const text = atob(data);
    const bytes = new DataView(new ArrayBuffer(text.length));
    for (let i = 0; i < text.length; i++) bytes.setUint8(i, text.charCodeAt(i));
    const [size, get] = {
      float32: [4, (at) => bytes.getFloat32(at, true)],
      float16: [2, (at) => fromHalf(bytes.getUint16(at, true))],
      int8: [1, (at) => bytes.getInt8(at)],
    }[dtype];
    return Float32Array.from({ length: text.length / size }, (_, i) => get(size * i));
  }

  /** IEEE 754 half precision: a sign bit, 5 bits of exponent, 10 of fraction. (Infinities are never packed.) */
  function fromHalf(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  }

  /** The entry `name` of a table of functions. Errors: Error for an unknown name. */
  function choose(table, option, name) {
    if (Object.hasOwn(table, name)) return table[name];
    throw new Error(`${option}=${name}: the choices are ${Object.keys(table).join(", ")}`);
  }

  /** A packed model, or one of its snapshots. Errors: Error for an unknown norm or activation. */
  class Model {
    constructor(packed, snapshot) {
      const { config, position, special, end, tensors } = packed;
      Object.assign(this, { config, position, special, end });
      this.tokens = packed.merges ? new BytePairs(packed) : new Characters(packed);
      this.vocabulary = this.tokens.names; // one string for each id, to be shown
      this.normalise = choose(NORMS, "norm", config.norm);
      this.activate = choose(ACTIVATIONS, "activation", config.activation);

      const weights = unpack(packed, snapshot);
      const tensor = (name) => {
        if (!(name in tensors)) return null;
        const { shape, offset } = tensors[name];
        return weights.subarray(offset, offset + shape.reduce((a, b) => a * b, 1));
      };
      const affine = (name) => ({ weight: tensor(`${name}.weight`), bias: tensor(`${name}.bias`) });
      const norm = (name, eps = config.norm_eps) => ({ ...affine(name), eps });
      const linear = (name) => {
        const [rows, columns] = tensors[`${name}.weight`].shape;
        return { ...affine(name), rows, columns };
      };
      this.wte = tensor("transformer.wte.weight"); // (V, C)
      this.wpe = tensor("transformer.wpe.weight"); // (block_size, C), or null
      this.wbe = tensor("transformer.wbe.weight"); // (V * V, C) for pairs of tokens, or null
      this.blocks = Array.from({ length: config.n_layer }, (_, layer) => {
        const name = `transformer.h.${layer}`;
        return {
          ln_1: norm(`${name}.ln_1`),
          c_attn: linear(`${name}.attn.c_attn`), // queries, keys, values: ((n_head + 2 kv_heads) head_dim, C)
          q_norm: config.qk_norm && norm(`${name}.attn.q_norm`, QK_EPS),
          k_norm: config.qk_norm && norm(`${name}.attn.k_norm`, QK_EPS),
          attn_proj: linear(`${name}.attn.c_proj`),
          ln_2: norm(`${name}.ln_2`),
          c_fc: linear(`${name}.mlp.c_fc`),
          mlp_proj: linear(`${name}.mlp.c_proj`),
        };
      });
      this.ln_f = norm("transformer.ln_f");
      this.head = linear("lm_head.weight" in tensors ? "lm_head" : "transformer.wte");
    }

    /** {ids, unknown}: characters outside the vocabulary are left out, and `unknown` has their indices. */
    encode(text) {
      const ids = [];
      const unknown = [];
      this.tokens.split(text).forEach(({ id }, index) => (id === undefined ? unknown.push(index) : ids.push(id)));
      return { ids, unknown };
    }

    /** The text, in which a special token appears as its name; without a character that is incomplete at the end. */
    decode(ids) {
      const write = this.tokens.writer();
      return Array.from(ids, (id) => write(id)).join("");
    }

    start() {
      return new State(this);
    }

    reader(ids, recorded = false) {
      return new Reader(this, ids, recorded);
    }
  }

  // ---- tokens ------------------------------------------------------------------------------------------------------

  /** Each character is a token. */
  class Characters {
    constructor({ vocabulary }) {
      this.names = vocabulary;
      this.idOf = new Map(vocabulary.map((token, id) => [token, id]));
    }

    /**
     * The tokens of a text, {token, id} each; a character outside the vocabulary has no id.
     *
     * Character by character, so no text becomes a special token, whose name is longer than one character.
     */
    split(text) {
      return Array.from(text, (token) => ({ token, id: this.idOf.get(token) }));
    }

    /** A function that takes one id after another and returns the text that is complete with it. */
    writer() {
      return (id) => this.names[id];
    }
  }

  // GPT-2's pattern: a token never crosses the border of two of its matches. (\s is another set in JavaScript.)
  const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
  const UTF8 = ["utf-8", { ignoreBOM: true }]; // ignoreBOM: U+FEFF is a character like any other

  /** Byte-level byte-pair encoding: a token is a sequence of bytes, written in hexadecimal; any text can be encoded. */
  class BytePairs {
    constructor({ vocabulary, special, merges }) {
      this.idOf = new Map(vocabulary.map((token, id) => [token, id]));
      this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
      const pairsOfDigits = (token) => token.match(/../g) ?? [];
      this.bytes = vocabulary.map((token) => {
        if (Object.hasOwn(special, token)) return new TextEncoder().encode(token);
        return Uint8Array.from(pairsOfDigits(token), (byte) => parseInt(byte, 16));
      });
      this.names = this.bytes.map((bytes, id) => {
        const text = new TextDecoder(...UTF8).decode(bytes);
        return text.includes("\ufffd") ? pairsOfDigits(vocabulary[id]).map((byte) => `<${byte}>`).join("") : text; // part of a character
      });
    }

    split(text) {
      const ids = (text.match(PIECES) ?? []).flatMap((piece) => this.merged(piece)).map((token) => this.idOf.get(token));
      return ids.map((id) => ({ token: this.names[id], id }));
    }

    /** The tokens of a piece: of its bytes, always the pair with the lowest rank is joined, the first of equal ones. */
    merged(piece) {
      const parts = Array.from(new TextEncoder().encode(piece), (byte) => byte.toString(16).padStart(2, "0"));
      const rank = (i) => this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
      const ranks = parts.map((_, i) => rank(i)); // of each part and the next one
      for (;;) {
        const at = ranks.reduce((best, one, i) => (one < ranks[best] ? i : best), 0);
        if (ranks[at] === Infinity) return parts;
        parts.splice(at, 2, parts[at] + parts[at + 1]);
        ranks.splice(at, 1);
        for (const i of at ? [at - 1, at] : [at]) ranks[i] = rank(i);
      }
    }

    writer() {
      const decoder = new TextDecoder(...UTF8);
      return (id) => decoder.decode(this.bytes[id], { stream: true });
    }
  }

  // ---- one position at a time --------------------------------------------------------------------------------------

  /**
   * The cache of a model that has read some tokens: keys and values of the last block_size positions.
   *
   * Position p lies in slot p % block_size. `length` counts the positions read; it may exceed block_size only if the
   * position is relative, otherwise `forget` comes first.
   */
  class State {
    constructor(model) {
      const { n_embd, n_layer, n_head, n_kv_head, block_size } = model.config;
      const size = n_embd / n_head; // head_dim
      const kv_heads = n_kv_head || n_head; // each is shared by n_head / kv_heads heads of queries
      this.model = model;
      this.layers = Array.from({ length: n_layer }, () => ({
        keys: new Float32Array(kv_heads * block_size * size), // (kv_heads, block_size, head_dim)
        values: new Float32Array(kv_heads * block_size * size),
        // for token_shift: half of the input of attention and of the MLP at the previous position
        previous: [new Float64Array(n_embd >> 1), new Float64Array(n_embd >> 1)],
      }));
      // working memory, allocated once
      this.x = new Float64Array(n_embd); // the residual stream
      this.normed = new Float64Array(n_embd);
      this.qkv = new Float64Array(model.blocks[0].c_attn.rows);
      const heads = (first, count) =>
        Array.from({ length: count }, (_, head) => this.qkv.subarray((first + head) * size, (first + head + 1) * size));
      this.query = heads(0, n_head); // of this position, for each head: views of qkv
      this.key = heads(n_head, kv_heads);
      this.value = heads(n_head + kv_heads, kv_heads);
      this.mixed = new Float64Array(n_embd); // the output of attention
      this.hidden = new Float64Array(model.blocks[0].c_fc.rows);
      this.scores = new Float64Array(block_size);
      this.logits = new Float64Array(model.head.rows);
      this.forget();
    }

    /** Start again at position 0. */
    forget() {
      this.length = 0;
      this.last = 0; // the previous token, for bigram_table: token 0 precedes the first
      this.attention = this.trace = null;
      for (const { previous } of this.layers) previous.forEach((half) => half.fill(0));
    }

    /** Whether no further token can be read before `forget`. */
    isFull() {
      return !this.model.position.relative && this.length >= this.model.config.block_size;
    }

    /**
     * Read one more token; returns the logits of the next one, a new Float32Array (V).
     *
     * recorded: `attention[layer][head]` is then a Float32Array of the weights of the cached positions, from the oldest to
     * this one, which sums to one; `trace` has the embedding, and for each layer the activations of the MLP (`hidden`)
     * and the sum after the block (`residual`). Errors: Error for an id outside the vocabulary and for a full window.
     */
    read(id, recorded = false) {
      const { model, x, normed, hidden } = this;
      const { config, position } = model;
      if (!Number.isInteger(id) || id < 0 || id >= config.vocab_size) throw new Error(`no token has the id ${id}`);
      if (this.isFull()) throw new Error("the window is full: forget() and read again");
      this.embed(id);
      // rounded to float32 where Python rounds: at position 10,000 that changes an angle by up to 0.0005
      const angles = position.frequencies?.map((frequency) => Math.fround(this.length * frequency));
      const rotation = angles && { cos: angles.map(Math.cos), sin: angles.map(Math.sin) };
      this.attention = recorded ? [] : null;
      this.trace = recorded ? { embedding: x.slice(), hidden: [], residual: [] } : null;
      for (let layer = 0; layer < config.n_layer; layer++) {
        const block = model.blocks[layer];
        const { previous } = this.layers[layer];
        model.normalise(block.ln_1, x, normed);
        if (config.token_shift) shift(normed, previous[0]);
        multiply(block.c_attn, normed, this.qkv);
        this.attend(block, this.layers[layer], rotation);
        multiply(block.attn_proj, this.mixed, x, true);
        model.normalise(block.ln_2, x, normed);
        if (config.token_shift) shift(normed, previous[1]);
        multiply(block.c_fc, normed, hidden);
        model.activate(hidden);
        multiply(block.mlp_proj, hidden, x, true);
        this.trace?.hidden.push(hidden.slice(0, block.mlp_proj.columns)); // a gated activation leaves it in the first half
        this.trace?.residual.push(x.slice());
      }
      model.normalise(model.ln_f, x, normed);
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

    /** Each head: softmax(q k / sqrt(head_dim) + bias) v over the cached positions, including this one. */
    attend({ q_norm, k_norm }, { keys, values }, rotation) {
      const { mixed, scores, query } = this;
      const { config, position } = this.model;
      const { block_size } = config;
      const size = query[0].length; // head_dim
      const current = this.length % block_size; // slot of this position
      const filled = Math.min(this.length + 1, block_size);
      const prepare = (part, norm) => {
        if (norm) scale(norm, part, part);
        if (rotation) rotate(part, rotation);
      };
      this.key.forEach((k, head) => {
        prepare(k, k_norm);
        keys.set(k, (head * block_size + current) * size);
        values.set(this.value[head], (head * block_size + current) * size);
      });
      const shared = query.length / this.key.length; // heads of queries for each head of keys and values
      const rows = query.map((q, head) => {
        prepare(q, q_norm);
        const start = Math.floor(head / shared) * block_size * size; // of this head's keys and values
        for (let slot = 0; slot < filled; slot++) {
          const key = start + slot * size;
          let sum = 0;
          for (let i = 0; i < size; i++) sum += q[i] * keys[key + i];
          scores[slot] = sum / Math.sqrt(size);
          if (position.bias) scores[slot] += position.bias[head][(current - slot + block_size) % block_size];
        }
        softmax(scores, filled);
        const out = mixed.subarray(head * size, (head + 1) * size).fill(0);
        for (let slot = 0; slot < filled; slot++) {
          const value = start + slot * size;
          for (let i = 0; i < size; i++) out[i] += scores[slot] * values[value + i];
        }
        const oldest = this.length + 1 - filled;
        return this.attention && Float32Array.from({ length: filled }, (_, i) => scores[(oldest + i) % block_size]);
      });
      if (this.attention) this.attention.push(rows);
    }
  }

  /**
   * W x + b into `out`, or added to `out` if `add`; W (rows, columns).
   *
   * Nearly all time is spent here. It computes four rows at once: each element of x is loaded once for four products,
   * and the four sums do not depend on each other.
   */
  function multiply({ weight, bias, rows, columns }, x, out, add = false) {
    if (!add) out.fill(0);
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
        const factor = x[i];
        sum0 += weight[w0 + i] * factor;
        sum1 += weight[w1 + i] * factor;
        sum2 += weight[w2 + i] * factor;
        sum3 += weight[w3 + i] * factor;
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

  /** x divided by its root mean square, times weight, plus bias, into `out`. */
  function scale({ weight, bias, eps }, x, out) {
    let squares = 0;
    for (let i = 0; i < x.length; i++) squares += x[i] * x[i];
    const factor = 1 / Math.sqrt(squares / x.length + eps);
    for (let i = 0; i < x.length; i++) out[i] = x[i] * factor * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
  }

  /** By the names of NORMS in tinygpt/options.py: normalise x into `out`. */
  const NORMS = {
    layernorm(parameters, x, out) {
      const mean = x.reduce((a, b) => a + b) / x.length;
      for (let i = 0; i < x.length; i++) out[i] = x[i] - mean;
      scale(parameters, out, out);
    },
    rmsnorm: scale,
  };

  /** By the names of ACTIVATIONS in tinygpt/options.py: in place. A gated one leaves its result in the first half. */
  const ACTIVATIONS = {
    gelu(x) {
      for (let i = 0; i < x.length; i++) x[i] *= (1 + erf(x[i] * Math.SQRT1_2)) / 2;
    },
    gelu_tanh(x) {
      const inner = (z) => Math.sqrt(2 / Math.PI) * (z + 0.044715 * z ** 3);
      for (let i = 0; i < x.length; i++) x[i] *= (1 + Math.tanh(inner(x[i]))) / 2;
    },
    relu2(x) {
      for (let i = 0; i < x.length; i++) x[i] = Math.max(x[i], 0) ** 2;
    },
    swiglu(x) {
      const half = x.length / 2;
      for (let i = 0; i < half; i++) x[i] *= x[half + i] / (1 + Math.exp(-x[i]));
    },
  };

  /** Token shift: swap the first half of x with that of the previous position, which `previous` holds. */
  function shift(x, previous) {
    for (let i = 0; i < previous.length; i++) [x[i], previous[i]] = [previous[i], x[i]];
  }

  /** Rotate each pair (x[i], x[i + head_dim / 2]), as `rotate` of tinygpt/options.py; cos, sin (head_dim). */
  function rotate(x, { cos, sin }) {
    const half = x.length / 2;
    for (let i = 0; i < half; i++) {
      const [a, b] = [x[i], x[half + i]];
      x[i] = a * cos[i] + b * sin[i];
      x[half + i] = b * cos[half + i] + a * sin[half + i];
    }
  }

  /**
   * The error function, within 1e-10: 2 / sqrt(pi) exp(-z^2) (z + 2 z^3 / 3 + 4 z^5 / (3 5) + ...), formula 7.1.6 of
   * Abramowitz and Stegun. All terms have the same sign, so none cancel. Beyond 5 the function is 1 within 2e-12.
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

  /** Turn the first `count` scores into a distribution, in place. Subtracting the largest avoids overflow. */
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

  // ---- a text longer than the context window -----------------------------------------------------------------------

  /**
   * A text and the logits of its next token, as in tinygpt/generate.py: only the last block_size tokens are
   * read, and a full window that cannot move is filled again with its last half.
   */
  class Reader {
    /** Errors: Error for an empty list of ids: a prediction needs a token. */
    constructor(model, ids, recorded) {
      if (!ids.length) throw new Error("there is nothing to read: give at least one id");
      this.model = model;
      this.state = model.start();
      this.ids = Array.from(ids);
      this.recorded = recorded;
      this.readLast(model.config.block_size);
    }

    /** Append one id, and read it. */
    push(id) {
      const full = this.state.isFull();
      this.ids.push(id);
      if (full) this.state.forget();
      this.readLast(full ? Math.max(1, this.model.config.block_size >> 1) : 1);
    }

    readLast(count) {
      for (const id of this.ids.slice(-count)) this.logits = this.state.read(id, this.recorded);
    }
  }

  // ---- the next token ----------------------------------------------------------------------------------------------

  /**
   * The distribution after each stage: {raw, temperature, topK, topP}, each a Float64Array (V).
   *
   * `raw` is the model's own; `topP`, the last stage, is the one to draw from. Temperature 0 is greedy decoding; topK
   * keeps the k most probable tokens (0: all) and those that tie with the last of them; topP keeps the fewest tokens
   * whose probabilities reach p (nucleus sampling, Holtzman et al. 2020).
   */
  function probabilities(logits, { temperature = 1, topK = 0, topP = 1 } = {}) {
    const raw = softmax(new Float64Array(logits));
    const largest = logits.reduce((a, b) => Math.max(a, b));
    if (temperature === 0) {
      const greedy = new Float64Array(logits.length);
      greedy[logits.indexOf(largest)] = 1;
      return { raw, temperature: greedy, topK: greedy.slice(), topP: greedy.slice() };
    }
    // rounded to float32 as in Python, so that the same tokens tie; a tiny temperature needs the largest at 0
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
   * The most probable tokens that together reach p, the others 0; the first is always kept.
   *
   * Float32 decides whether p is reached, as in Python: of ten equal probabilities p = 0.9 keeps nine in both, and of
   * three p = 2/3 keeps all.
   */
  function nucleus(distribution, p) {
    const kept = new Float64Array(distribution.length);
    let sum = 0;
    for (const id of [...distribution.keys()].sort((a, b) => distribution[b] - distribution[a])) {
      const probability = Math.fround(distribution[id]);
      const before = Math.fround(Math.fround(sum + probability) - probability);
      if (sum > 0 && before >= Math.fround(p)) break;
      kept[id] = distribution[id];
      sum += probability;
    }
    const total = kept.reduce((a, b) => a + b);
    return kept.map((probability) => probability / total);
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

  /** The first id at which the cumulative sum of the distribution p exceeds u, in [0, 1). */
  function draw(p, u) {
    let sum = 0;
    let last = 0;
    for (let id = 0; id < p.length; id++) {
      if (p[id] > 0) last = id; // rounding may leave the sum of all below u
      sum += p[id];
      if (u < sum) return id;
    }
    return last;
  }

  const load = (packed, snapshot = null) => new Model(packed, snapshot);
  return { load, weights: unpack, probabilities, random, draw };
})();

if (typeof module !== "undefined") module.exports = TinyGPT;
