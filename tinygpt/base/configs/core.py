"""The configurations of the core's commands: prepare, train, finetune, sample.

    defaults  <  config files (YAML, or Python in nanoGPT's style)  <  --key=value

Each command has one flat dataclass, with nanoGPT's names for the keys. The text below a field is its help, which a
subclass inherits if it only changes the default. Limits are part of a field's type (fields.py, shared.py). parse.py
makes a config from files and flags.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from tinygpt.base.configs.fields import DATASET_NAME, POSITIONAL, RUN, Config, Group, Limit, Text, keys
from tinygpt.base.configs.shared import (
    FOLDER_NAME,
    CheckpointConfig,
    Count,
    CountOrZero,
    DataConfig,
    DatasetName,
    Dtype,
    File,
    Files,
    InferenceConfig,
    NonNegative,
    Seed,
    Share,
    Switch,
    Threads,
    TimeOrNone,
)


@dataclasses.dataclass
class PrepareConfig(DataConfig):
    """Turn text into token files: data/NAME/{train.bin, val.bin, meta.json}.

    Built-in corpora: shakespeare_char (65 characters), shakespeare (the same text in GPT-2's BPE), naics (industries).

    Built-in tasks of prompts and responses: transactions, headlines, compliance, reports, reports_a, reports_b,
    sql, reader, reader_long.

    tinygpt prepare shakespeare_char
    tinygpt prepare mine --input notes.txt more/ '*.md'                        # your own text
    tinygpt prepare mine --input pages.jsonl.gz --text_field=text --workers=4  # large text
    tinygpt prepare mine --input pairs.jsonl --format pairs --show 3           # your own pairs
    """

    name: Annotated[str, Text(DATASET_NAME, FOLDER_NAME), POSITIONAL]
    """the dataset's name: a built-in corpus or task, or any name together with --input"""
    input: Files = ()
    """your own text: files, folders or patterns, read in sorted order; each text file begins on a new line. Of a
    folder: *.txt, *.jsonl and *.ndjson (also .gz and .zst), else its text files, if all have the same ending; for pairs
    *.jsonl, *.csv and *.xlsx"""
    tokenizer: File = "auto"
    """char: each character is a token; bpe: byte-pair encoding trained on your text (pip install
    "tinygpt[pretrained]"); gpt2: GPT-2's byte-pair encoding; auto: char for your own text; a checkpoint or its folder:
    that model's tokenizer"""
    vocab_size: Annotated[int, Limit(">=", 256), Limit("<=", 65536)] = 1024
    """bpe: number of tokens: the 256 bytes, those learned from the text (fewer if it is short), and the special tokens
    of pairs"""
    val_fraction: Annotated[float, Limit(">", 0), Limit("<", 1)] = 0.1
    """share of the text kept for validation, from its end; for pairs, the share of examples"""
    encoding: str = "utf-8"
    """the input's character encoding, for example cp1252 or utf-16"""
    format: Literal["text", "pairs"] = "text"
    """text: one long text; pairs: a prompt and a response per line (JSON Lines) or per row (.csv, or Excel's .xlsx)"""

    text_field: Annotated[str, Group("text")] = "text"
    """JSON Lines: the key of the text; each line is a document that ends with the tokenizer's end-of-text token (gpt2:
    <|endoftext|>), or if it has none (char, bpe) with a line end"""
    workers: Annotated[int, Limit(">=", 1), Limit("<=", 61)] = 1
    """number of processes that parse and encode it; the result is the same"""

    prompt_field: Annotated[str, Group("pairs")] = "prompt"
    """the key or column of the prompt"""
    response_field: str = "response"
    """the key or column of the response"""
    labels: tuple[str, ...] = ()
    """the permitted labels, for example --labels ok breach; any other response is refused with its line; empty: any"""
    test_fraction: float = 0.1
    """share of the examples kept as the test split"""
    skip_bad: bool = False
    """skip lines that are not pairs instead of stopping"""
    show: CountOrZero = 0
    """print this many examples, and mark the characters that count for the loss"""
    synthetic: bool = False
    """for the task transactions: invented merchants instead of real brands"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.format == "pairs" and not 0 < self.test_fraction < 1 - self.val_fraction:
            yield f"test_fraction is {self.test_fraction}, but must be above 0 and leave room for training"


def prepare_options(config: PrepareConfig) -> dict[str, Any]:
    """Return the options that differ from their defaults, for meta.json: a message can then show the command that makes
    the dataset again."""
    apart = ("name", "show", "data_dir", "workers")  # do not affect the content
    values = {key: getattr(config, key) for key in keys(PrepareConfig) if key not in apart}
    return {key: value for key, value in values.items() if value != getattr(PrepareConfig, key)}


@dataclasses.dataclass
class TrainConfig(Config):
    """Train a GPT on a prepared dataset. OUT_DIR gets its checkpoints and metrics.

    tinygpt train --dataset=mine --budget=5m
    tinygpt train configs/shakespeare_char.yaml --device=cpu --max_iters=500
    tinygpt train --init_from=resume  # continue the run in out

    Start from a preset: shakespeare_char, shakespeare_char_fast, shakespeare_char_best, shakespeare_char_record,
    shakespeare_char_gpu, nanogpt, compliance, sql or reports. What a config leaves open has nanoGPT's defaults.
    """

    config: Annotated[Files, POSITIONAL] = ()
    """presets, or config files (.yaml, or .py in nanoGPT's style); later ones override earlier ones"""

    dataset: DatasetName = "openwebtext"
    """a prepared dataset, DATA_DIR/DATASET"""
    out_dir: File = "out"
    """folder for checkpoints and metrics"""
    max_iters: CountOrZero = 600000
    """iterations (optimizer updates)"""
    batch_size: Count = 12
    """sequences per micro-step"""
    budget: TimeOrNone = ""
    """time for the whole command, such as 90s, 5m or 1h: tinygpt chooses the model and its training (only max_iters, if
    a config or a checkpoint has the rest); by default 2m for a new run without a config, max_iters or a size"""
    learning_rate: NonNegative = 6e-4
    """peak learning rate"""
    dropout: Share = 0.0
    """probability of dropping an activation in training; for small datasets 0.1 or more"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto: a CUDA GPU, on a Mac the faster of CPU and MPS, else the CPU"""
    init_from: File = "scratch"
    """scratch: new weights; resume: continue the run in OUT_DIR, with its settings; auto: resume if there is one, else
    scratch; a checkpoint, or gpt2, gpt2-medium, gpt2-large, gpt2-xl (OpenAI's): start from its weights"""
    watch: bool = False
    """write the page OUT_DIR/report.html after each evaluation, with the losses and the newest samples; at the end the
    full report replaces it. Not stored with the run: give it again when resuming"""

    n_layer: Annotated[Count, Group("model")] = 12
    """decoder blocks"""
    n_head: Count = 12
    """attention heads per block; must divide n_embd"""
    n_embd: Count = 768
    """width of the residual stream"""
    block_size: Count = 1024
    """context length in tokens"""
    bias: bool = False
    """biases in linear layers and LayerNorm, as in GPT-2"""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """normalisation: layernorm (Ba et al. 2016) or rmsnorm (Zhang & Sennrich 2019)"""
    position: Literal["learned", "rope", "alibi"] = "learned"
    """position encoding: learned (GPT-2), rotary (rope, Su et al. 2021), or an attention bias by distance (alibi, Press
    et al. 2021)"""
    activation: Literal["gelu", "gelu_tanh", "relu2", "swiglu"] = "gelu"
    """activation of the MLP: gelu, gelu_tanh (its approximation in OpenAI's GPT-2), relu2 (So et al. 2021) or swiglu
    (Shazeer 2020)"""
    qk_norm: bool = False
    """normalise queries and keys in each head (Henry et al. 2020)"""
    tie_weights: bool = True
    """one matrix for token embedding and output head (Press & Wolf 2017)"""
    zero_init: bool = False
    """start the blocks' output projections at zero: each block begins as the identity (Zhang et al. 2019)"""
    bigram_table: bool = False
    """also embed pairs of neighbouring tokens, in vocabulary x vocabulary rows (small vocabularies)"""
    token_shift: bool = False
    """take half of the input channels of attention and MLP from the previous token"""
    n_kv_head: CountOrZero = 0
    """heads of keys and values (grouped-query attention, Ainslie et al. 2023); must divide n_head; 0: n_head"""
    mlp_width: CountOrZero = 0
    """width of the MLP's hidden layer; 0: 4 n_embd, or 8/3 n_embd with swiglu"""
    rope_base: Annotated[float, Limit(">", 0)] = 10000.0
    """base of the rotary embedding's wavelengths (position=rope)"""
    norm_eps: NonNegative = 1e-5
    """added to the variance in the normalisation layers"""
    qk_norm_weights: bool = False
    """with qk_norm: weights on the normalised queries and keys, as in Qwen3"""
    window: CountOrZero = 0
    """sliding-window attention (Jiang et al. 2023): each position attends to itself and window - 1 earlier ones; 0: no
    window"""

    gradient_accumulation_steps: Annotated[Count, Group("text")] = 40
    """micro-steps per iteration, summed over all processes"""
    sampling: Literal["independent", "epochs"] = "independent"
    """independent: sequences start anywhere in the text, as in nanoGPT; epochs: each sequence once per epoch, in a new
    order; plain text is cut at other places in each epoch"""
    group_by_length: bool = False
    """for pairs: batches of similar length, with less padding; faster if lengths vary much"""
    context_warmup: CountOrZero = 0
    """sequence length warm-up (Li et al. 2022) for plain text: the first half of so many iterations cuts each sequence
    into four shorter ones, the second half into two"""
    seed: Seed = 1337
    """seed of the weights, the batches and dropout"""
    data_dir: File = "data"
    """folder of the datasets"""

    lr_schedule: Annotated[Literal["cosine", "linear", "constant"], Group("optimizer")] = "cosine"
    """after the warm-up: cosine or linear decay to min_lr, or constant"""
    decay_lr: bool = True
    """nanoGPT's key: False means lr_schedule=constant"""
    warmup_iters: CountOrZero = 2000
    """iterations of linear warm-up"""
    lr_decay_iters: CountOrZero = 0
    """iteration at which the decay reaches min_lr; 0: max_iters, also if it is raised when resuming"""
    min_lr: NonNegative = 6e-5
    """the learning rate after the decay; usually learning_rate / 10"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw (Loshchilov & Hutter 2019), or muon (Jordan et al. 2024) for the blocks' matrices, adamw for the rest"""
    muon_learning_rate: NonNegative = 0.02
    """peak learning rate of Muon's matrices (optimizer=muon)"""
    weight_decay: NonNegative = 0.1
    """weight decay of matrices and embeddings, not of biases and norms"""
    beta1: Share = 0.9
    """AdamW's decay rate of the first moment"""
    beta2: Share = 0.95
    """AdamW's decay rate of the second moment"""
    grad_clip: NonNegative = 1.0
    """maximum norm of the gradient of all parameters; 0: no clipping"""
    teacher: File = ""
    """distillation (Hinton et al. 2015): also learn from the probabilities of this trained model, which has the same
    vocabulary; a checkpoint, or its folder; empty: none. The logged loss remains the cross-entropy"""
    teacher_share: Annotated[float, Limit(">=", 0), Limit("<=", 1)] = 0.5
    """with teacher: weight of KL(teacher || model), the Kullback-Leibler divergence, in the training loss; the
    cross-entropy has weight 1 - teacher_share"""

    eval_interval: Annotated[Count, Group("evaluation")] = 2000
    """iterations between evaluations of both splits"""
    eval_iters: CountOrZero = 200
    """batches per evaluation and split; 0: the complete validation split, each token once"""
    eval_only: bool = False
    """evaluate once and stop"""
    patience: CountOrZero = 0
    """stop after this many evaluations without a better validation loss; 0: never"""
    log_interval: Count = 1
    """iterations between lines in metrics.jsonl"""
    sample_interval: CountOrZero = 0
    """iterations between short samples, printed at evaluations; 0: none"""
    quiet: bool = False
    """print evaluations only, without progress bar and samples"""

    always_save_checkpoint: Annotated[bool, Group("files")] = False
    """write ckpt.pt at every evaluation, not only at the best"""
    checkpoint_interval: CountOrZero = 0
    """iterations between additional saves of last.pt; 0: at evaluations only"""
    snapshots: Annotated[int, Limit(">=", -1)] = -1
    """number of steps, mostly early, with saved weights (OUT_DIR/snapshots), for a slider in the report; 0: none; -1:
    up to 10, if they take less than 2% of the time and 6 MB"""
    report_to: Literal["none", "tensorboard"] = "none"
    """tensorboard: also write losses, learning rate, gradient norm and speed to OUT_DIR/tensorboard (tensorboard
    --logdir OUT_DIR shows them); none: to metrics.jsonl only"""

    dtype: Annotated[Dtype, Group("machine")] = "auto"
    """dtype of matrix products (weights and optimizer stay in float32); auto: bfloat16 if the hardware supports it,
    else float32, or float16 on an NVIDIA GPU without bfloat16"""
    compile: Switch = "auto"
    """torch.compile the model; auto: on CUDA GPUs only"""
    threads: Threads = "auto"
    """number of threads on a CPU; auto: OMP_NUM_THREADS, else chosen by timing steps at the start (a resumed run keeps
    its own) and, without a budget, when it becomes slow; a number makes results reproducible bit for bit"""
    fast: Switch = "auto"
    """use the fast path for CPUs (tinygpt/fast) instead of plain PyTorch; auto: on a CPU"""
    shard: bool = False
    """divide weights, gradients and optimizer state among the processes of torchrun (fully_shard), for models that are
    too large for one device; uses plain PyTorch"""
    checkpoint_activations: bool = False
    """keep only the inputs of the blocks for the backward pass, and compute their activations again: less memory, a
    fifth to a third more computation; uses plain PyTorch"""
    backend: str = "auto"
    """torch.distributed's backend under torchrun; auto: nccl on GPUs, gloo elsewhere"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.budget and "max_iters" in self.flags:
            yield "budget fixes max_iters: give one of them"
        for key in ("budget", "watch"):
            if getattr(self, key) and self.eval_only:
                yield f"{key} is for training, and cannot be used with eval_only"
        if not self.decay_lr and "lr_schedule" in self.flags and self.lr_schedule != "constant":
            yield f"decay_lr=False means lr_schedule=constant, and cannot be used with lr_schedule={self.lr_schedule}"
        if self.fast == "True" and (self.shard or self.checkpoint_activations):
            yield "fast=True cannot be used with shard or checkpoint_activations, which need plain PyTorch"
        if self.shard and self.compile == "True":
            yield "compile=True cannot be used with shard"
        if self.n_head > 0 and (self.config or not self.budget):  # else the budget chooses what is not given
            yield from self.problems_of_heads()

    def problems_of_heads(self) -> Iterator[str]:
        if self.n_embd % self.n_head:
            yield f"n_head {self.n_head} does not divide n_embd {self.n_embd}"
        elif self.position == "rope" and (width := self.n_embd // self.n_head) % 2:
            yield f"position=rope rotates pairs of channels, so n_embd / n_head must be even, but is {width}"
        if self.n_kv_head and self.n_head % self.n_kv_head:
            yield f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}"
        if self.qk_norm_weights and not self.qk_norm:
            yield "qk_norm_weights needs qk_norm"


SESSION = ("watch", "budget", "flags", "given", "started")


def run_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration of a run, as its checkpoints and config.yaml store it."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in SESSION}


@dataclasses.dataclass
class FinetuneConfig(TrainConfig):
    """Fine-tune a trained model on a few thousand examples and write OUT_DIR/{ckpt.pt, last.pt, ...}.

    tinygpt finetune configs/finetune_transactions.yaml --ckpt out-fast/ckpt.pt
    tinygpt finetune configs/finetune_transactions.yaml --ckpt out-fast/ckpt.pt --lora_rank=8 --learning_rate=5e-3
    tinygpt finetune configs/finetune_transactions_pretrained.yaml --ckpt out-smollm2
    """

    hidden_groups = ("model",)  # the base model's

    ckpt: File = "out/ckpt.pt"
    """the base model: a checkpoint, or its folder; it determines architecture and context length"""
    dataset: DatasetName = "transactions"
    """a prepared dataset, of prompts and responses or plain text"""
    out_dir: File = "out-finetune"
    max_iters: CountOrZero = 1000
    init_from: File = "scratch"
    """scratch: start from --ckpt; resume: continue the run in OUT_DIR, with its settings; auto: resume if there is one,
    else scratch"""

    lora_rank: Annotated[CountOrZero, Group("fine-tuning")] = 0
    """rank of the LoRA adapters (Hu et al. 2021), with the base weights frozen; 0: full fine-tuning, of all weights"""
    lora_alpha: NonNegative = 16.0
    """adapter output is scaled by lora_alpha / lora_rank"""
    lora_dropout: Share = 0.0
    """probability of dropping an adapter's input in training"""
    lora_targets: str = "c_attn,c_proj,c_fc"
    """linear layers that get an adapter, in every block"""
    replay: Share = 0.0
    """share of training rows drawn from the base model's dataset, to reduce forgetting"""
    examples: CountOrZero = 0
    """train on the first N examples (plain text: N tokens), for learning curves; 0: all"""
    base_dataset: DatasetName = ""
    """the base model's dataset; empty: as its checkpoint says"""

    batch_size: Count = 32
    gradient_accumulation_steps: Count = 1
    learning_rate: NonNegative = 1e-3
    lr_schedule: Literal["cosine", "linear", "constant"] = "linear"
    min_lr: NonNegative = 0.0
    """the learning rate after the decay"""
    warmup_iters: CountOrZero = 20
    eval_interval: Count = 100
    """iterations between evaluations"""
    eval_iters: CountOrZero = 0
    """batches per evaluation and split; 0: the complete validation split"""
    patience: CountOrZero = 5

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.replay and self.sampling == "epochs":
            yield "sampling=epochs cannot be used with replay, whose batches have a varying number of new rows"


@dataclasses.dataclass
class SampleConfig(InferenceConfig, CheckpointConfig):
    """Generate text with a trained model.

    tinygpt sample out
    tinygpt sample out --start "ROMEO:" --max_new_tokens 300
    """

    ckpt: Annotated[File, RUN] = "out/ckpt.pt"
    """a run's folder, or a checkpoint (also nanoGPT's)"""
    adapter: File = ""
    """a LoRA adapter of that checkpoint: adapter.pt, or its folder"""
    start: str = "\n"
    """the prompt; FILE:prompt.txt reads it from a file"""
    num_samples: Count = 1
    """number of samples, generated as one batch"""
    max_new_tokens: CountOrZero = 500
    """tokens to add to the prompt"""
    temperature: NonNegative = 0.8
    """below 1 less random, above 1 more random; 0: greedy decoding"""
    top_k: CountOrZero = 200
    """sample from the k most probable tokens only; 0: from all"""
    top_p: Annotated[float, Limit(">", 0), Limit("<=", 1)] = 1.0
    """sample from the fewest tokens whose probabilities add up to p (Holtzman et al. 2020); 1: from all"""
    stop: str = ""
    """end a sample where this text appears"""
    plain: bool = False
    """continue the prompt as plain text, even if the model was fine-tuned to answer prompts"""
    seed: Annotated[int, Limit(">=", -1), Limit("<", 2**63)] = -1
    """the same seed gives the same text; -1: another text each time, with its seed on standard error"""
    skip_unknown: bool = False
    """remove prompt characters outside the model's vocabulary instead of refusing them"""
    exact_window: bool = False
    """beyond the context length, recompute the complete window for every token, as nanoGPT does (slow)"""
    json: bool = False
    """print one JSON object per sample, for programs"""
