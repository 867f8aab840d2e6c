"""Defaults < files < flags, under nanoGPT's names; a config file is parsed, never executed."""

import dataclasses
import math
import os
import re
import shlex
import string
import subprocess
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt import cli
from tinygpt.base.configs import parse as configfile
from tinygpt.base.configs.adapt import ExportConfig
from tinygpt.base.configs.core import FinetuneConfig, PrepareConfig, SampleConfig, TrainConfig, run_settings
from tinygpt.base.configs.examine import EvalConfig
from tinygpt.base.configs.fields import PATH, POSITIONAL, Config, Key, Limit, groups, keys, meanings
from tinygpt.base.configs.parse import from_values, parse, read_python, to_yaml
from tinygpt.base.errors import TinyGPTError


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*args: str) -> TrainConfig:
    return parse(TrainConfig, list(args))


def complaint(*args: str, kind: type = TrainConfig) -> str:
    with pytest.raises(TinyGPTError) as caught:
        parse(kind, list(args))
    return f"{caught.value.message} [{caught.value.hint}]"


# ---- where a value comes from -----------------------------------------------------------------------------------


def test_defaults_then_files_in_order_then_flags(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("n_layer: 2\nn_head: 2\nn_embd: 64\n")
    (tmp_path / "b.py").write_text("n_layer = 3\nn_head = 4\n")
    made = train("--n_layer=5", str(tmp_path / "a.yaml"), str(tmp_path / "b.py"))
    assert (made.n_layer, made.n_head, made.n_embd, made.block_size) == (5, 4, 64, TrainConfig.block_size)
    assert made.given == {"n_layer", "n_head", "n_embd"}
    assert made.flags == {"n_layer"}
    made = train(str(tmp_path / "b.py"), str(tmp_path / "a.yaml"))
    assert (made.n_layer, made.n_head) == (2, 2)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--max-iters 7 --quiet", {"max_iters": 7, "quiet": True}),
        ("--quiet=True --bias=true --min_lr=1", {"quiet": True, "bias": True, "min_lr": 1.0}),
        ("--decay_lr False --tie_weights=false", {"decay_lr": False, "tie_weights": False}),
        ("--max_iters=7 --max-iters=8", {"max_iters": 8}),
        ("'--out_dir=a b=c'", {"out_dir": "a b=c"}),
        ("--out_dir true --backend=", {"out_dir": "true", "backend": ""}),
        ("--compile --fast False", {"compile": "True", "fast": "False"}),
    ],
)
def test_the_forms_of_a_flag(line: str, expected: dict[str, Any]) -> None:
    assert train(*shlex.split(line)) == TrainConfig(**expected) == from_values(TrainConfig, [], expected)


def test_python_values_are_checked_like_flags(tmp_path: Path) -> None:
    (tmp_path / "-a.yaml").write_text("n_layer: 2\nn_head: 2\nn_embd: 64\n")
    values = {"n_layer": np.int64(3), "bias": np.True_, "dropout": np.float32(0.1), "compile": True, "threads": 2}
    run = from_values(TrainConfig, [tmp_path / "-a.yaml"], values | {"out_dir": Path("~/--x"), "seed": None})
    found = (run.n_layer, run.n_embd, run.bias, run.dropout, run.compile, run.threads, run.seed, run.out_dir)
    expected = (3, 64, True, float(np.float32(0.1)), "True", "2", TrainConfig.seed, os.path.expanduser("~/--x"))
    assert found == expected
    assert run.flags == {*values, "out_dir"} and run.given == run.flags | {"n_head", "n_embd"}
    text = from_values(SampleConfig, [], {"start": "--json", "stop": "--help"})
    assert (text.start, text.stop, text.json) == ("--json", "--help", False)
    files = from_values(PrepareConfig, ["mine"], {"input": (Path(name) for name in ("a", "--b")), "labels": "one"})
    assert (files.name, files.input, files.labels) == ("mine", ("a", "--b"), ("one",))
    for values, problem in (
        ({"max_iters": [1, 2]}, "max_iters: needs one value, not [1, 2] []"),
        ({"max_iters": {"a": 1}}, "--max_iters: needs one plain value, not dict {'a': 1} [max_iters: 1]"),
        ({"dataset": 1.5}, "--dataset: needs text, not the number 1.5 [dataset = '1.5']"),
        ({"lr": None}, "--lr: no such key [--learning_rate=VALUE]"),
        ({"config": "a.yaml"}, "--config: is an argument without a flag, not a key [tinygpt CONFIG]"),
    ):
        with pytest.raises(TinyGPTError) as caught:
            from_values(TrainConfig, [], values)
        assert f"{caught.value.message} [{caught.value.hint}]" == problem


def test_the_keys_of_wandb_are_ignored_in_a_dictionary(capsys: pytest.CaptureFixture[str]) -> None:
    assert from_values(TrainConfig, [], {"wandb_log": True, "wandb_project": "owt"}) == TrainConfig()
    assert "note: --wandb_log is ignored" in capsys.readouterr().err


def test_python_that_is_only_values() -> None:
    """The expressions that occur in nanoGPT's config files, and others."""
    for line, value in {
        "import time\n\nwandb_run_name = 'ft-' + str(time.time())\na = 5 * 8 # b": 40,
        "a = (1 + 2) * 3 - 4": 5,
        "a = -1e-3": -1e-3,
        "b = 3\na = b * b": 9,
        "a = 'x' + \"y\"": "xy",
        "'a docstring'\na = True": True,
    }.items():
        assert read_python(line, Path("a.py"))["a"] == value


# ---- files ------------------------------------------------------------------------------------------------------


def strategy(key: Key) -> st.SearchStrategy[Any]:
    if get_origin(key.type) is Literal:
        return st.sampled_from(get_args(key.type))
    limits = {mark.sign: mark.bound for mark in key.marks if isinstance(mark, Limit)}
    low, high = limits.get(">=", limits.get(">", 0)), min(limits.get("<=", limits.get("<", math.inf)), 10**9)
    words = ["true", "null", "1e-3", "off", "0x10", "2020-01-01", "~", "a: b", "# a", "é", "--quiet"]
    text = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t"), max_size=12)
    text |= st.sampled_from(words)
    return {
        bool: st.booleans(),
        int: st.integers(int(low), int(high)),
        float: st.floats(low, high, exclude_min=">" in limits, exclude_max=high == limits.get("<")),
        str: text.map(os.path.expanduser) if PATH in key.marks else text,  # parsing has replaced a leading ~
    }[key.type]


DEPENDENT = ["config", "dataset", "base_dataset", "threads", "fast", "compile", "sampling", "qk_norm_weights"]
DEPENDENT += ["n_layer", "n_head", "n_kv_head", "n_embd"]
DRAWN = {name: strategy(key) for name, key in keys(FinetuneConfig).items() if name not in DEPENDENT}


@given(values=st.fixed_dictionaries({}, optional=DRAWN))
@settings(max_examples=20)
def test_what_a_run_writes_down_is_read_back_the_same(values: dict[str, Any], tmp_path_factory: Any) -> None:
    """to_yaml, a file, parse: any text, numbers at full precision, words that YAML could read as another type."""
    made = dataclasses.replace(FinetuneConfig(), **values)
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(made), encoding="utf-8")
    read = parse(FinetuneConfig, [str(path)])
    assert run_settings(read) == run_settings(made) | {"config": (str(path),)}
    assert not read.watch  # a run is watched if the command says so, not because it was watched before


def test_a_small_number_and_an_empty_file(tmp_path: Path) -> None:
    assert isinstance(yaml.safe_load("1e-4"), str)  # the reason for this test
    for text in ("1e-4", "1.E-4", "0.0001", "+1e-4", "'1e-4'"):
        (tmp_path / "a.yaml").write_text(f"learning_rate: {text}\n")
        assert train(str(tmp_path / "a.yaml")).learning_rate == 1e-4
    for text in ("", "# nothing\n", "---\n"):
        (tmp_path / "a.yaml").write_text(text)
        assert dataclasses.replace(train(str(tmp_path / "a.yaml")), config=()) == TrainConfig()


RUNS = [  # each would write the file `executed`, or take very long
    "open('executed', 'w')",
    "a = __import__('pathlib').Path('executed').touch()",
    "import os",
    'a = f\'{open("executed", "w")}\'',
    "a = 1 if open('executed', 'w') else 2",
    "if True:\n    a = 1",
    "a = 'x' * 1000000000",
    "a = 9 ** 9 ** 9",
    "a = 10 * 9999999999 * 9999999999",
    "a = 1 / 0",
    "a: int = open('executed', 'w')",
    "str = print\na = str(1)\nb = [1]",
]
OBJECTS = [
    "a: !!python/object/apply:os.system ['touch executed']",
    "a: &a [*a]",
    "[" * 2000,
    "a: " + "{a: " * 2000,
    "? [1]\n: 2",
    "1: 2",
    "a: 2020-99-99",
    "a: 0x" + "f" * 5000,
    "a: 1\n---\nb: 2",
    "a: \x00",
]


def test_a_config_that_needs_running_or_is_not_keys_and_plain_values_is_refused(empty: Path) -> None:
    """A line of Python is named by its number."""
    for line in RUNS:
        (empty / "a.py").write_text(f"# one\nseed = 1\n{line}\n")
        said = complaint("a.py")
        assert "a.py, line " in said and "YAML" in said, line
    for text in OBJECTS:
        (empty / "a.yaml").write_text(text)
        assert "a.yaml" in complaint("a.yaml"), text
    assert not (empty / "executed").exists()


NANOGPT_VALUES: dict[str, dict[str, Any]] = {  # of the three files, as they are in nanoGPT
    name: yaml.safe_load(f"{{{values}}}")
    for name, values in {
        "config/train_shakespeare_char.py": "out_dir: out-shakespeare-char, eval_interval: 250, eval_iters: 200, "
        "log_interval: 10, dataset: shakespeare_char, gradient_accumulation_steps: 1, batch_size: 64, block_size: 256, "
        "n_layer: 6, n_head: 6, n_embd: 384, dropout: 0.2, learning_rate: 1.0e-3, max_iters: 5000, min_lr: 1.0e-4, "
        "beta2: 0.99, warmup_iters: 100, always_save_checkpoint: false",
        "config/finetune_shakespeare.py": "out_dir: out-shakespeare, eval_interval: 5, eval_iters: 40, "
        "dataset: shakespeare, init_from: gpt2-xl, batch_size: 1, gradient_accumulation_steps: 32, max_iters: 20, "
        "learning_rate: 3.0e-5, decay_lr: false, always_save_checkpoint: false",
        "config/train_gpt2.py": "batch_size: 12, block_size: 1024, gradient_accumulation_steps: 40, max_iters: 600000, "
        "eval_interval: 1000, eval_iters: 200, log_interval: 10, weight_decay: 1.0e-1, n_layer: 12, n_head: 12, "
        "n_embd: 768, learning_rate: 6.0e-4, min_lr: 6.0e-5, warmup_iters: 2000, beta2: 0.95, dataset: openwebtext",
    }.items()
}


@pytest.mark.parametrize("name", NANOGPT_VALUES)
def test_the_names_of_nanogpts_files_mean_presets_with_their_values(
    name: str, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = train(name)
    made.lr_decay_iters = made.lr_decay_iters or made.max_iters  # 0 means the same
    expected = {"lr_decay_iters": made.max_iters, **NANOGPT_VALUES[name]}
    assert {key: getattr(made, key) for key in expected} == expected
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"note: {name}: no such file, so the preset")
    (empty / "config").mkdir()
    Path(name).write_text("dataset = 'mine'\n")
    assert train(name).dataset == "mine" and not capsys.readouterr().err  # the user's own file comes first


@pytest.mark.parametrize("name", ["sql", "sql.yaml", "configs/sql.yaml"])
def test_a_preset_is_found_by_its_name_without_a_checkout(name: str, empty: Path) -> None:
    (empty / "sql").mkdir()
    assert train(name).dataset == "sql"
    (empty / "sql").rmdir()
    (empty / "sql").write_text("dataset: mine\n")  # the user's own file comes first
    assert train("sql").dataset == "mine"


def test_a_wrong_name_lists_the_presets_for_people(empty: Path) -> None:
    lines = complaint("nothing_like_it").rpartition(" [")[0].splitlines()[1:]
    presets = {path.stem for folder in configfile.PRESETS for path in folder.glob("*.yaml")}
    assert {line.split()[0] for line in lines} == presets
    assert all(re.fullmatch(r" {4}\w+ +\S.{20,79}", line) for line in lines)


def test_every_preset_is_valid_and_says_why() -> None:
    presets = [path for folder in (*configfile.PRESETS, *configfile.OTHERS) for path in folder.glob("*.yaml")]
    assert len({path.stem for path in presets}) == len(presets)
    for path in presets:
        finetune = path.name.startswith("finetune_")
        made = parse(FinetuneConfig if finetune else TrainConfig, [str(path)])
        to_zero = made.lr_schedule == "linear" and made.min_lr == 0
        assert made.out_dir and (to_zero or not made.decay_lr or math.isclose(made.min_lr, made.learning_rate / 10))
        assert path.read_text(encoding="utf-8").count("#") >= 3, path


# ---- errors -----------------------------------------------------------------------------------------------------


def test_dataset_names_that_could_leave_data() -> None:
    for name in ("..", "../a", "/a", "a/b", "a\\b", "a\n", " a", "-a", "~a", "a:b", ".git"):
        assert "must be the name of a folder" in complaint(f"--dataset={name}")
        assert "must be the name of a folder" in complaint(f"--dataset={name}", kind=EvalConfig)
        if not name.startswith("-"):
            assert "must be the name of a folder" in complaint(name, "--input=a.txt", kind=PrepareConfig)
    assert train("--dataset=my-text.v2_日本").dataset == "my-text.v2_日本"


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (TrainConfig, "batch_size=0 block_size=0 n_layer=0 n_head=0 eval_interval=0 rope_base=0 dropout=1.0 beta2=1.0"),
        (TrainConfig, "n_layer=1.5 n_layer= quiet=maybe norm=batchnorm"),
        (TrainConfig, "learning_rate=inf min_lr=inf weight_decay=inf grad_clip=inf dropout=nan grad_clip=nan"),
        (TrainConfig, f"max_iters={2**53} eval_iters={2**53} batch_size={2**53} patience={2**53} seed={2**63}"),
        (SampleConfig, "num_samples=0 temperature=-1 top_k=-1 top_p=1.5 top_p=0 max_new_tokens=-1"),
        (PrepareConfig, "val_fraction=0 val_fraction=1 val_fraction=nan"),
    ],
)
def test_values_out_of_range_or_of_the_wrong_type_name_the_key(kind: type, flags: str) -> None:
    name = ["mine"] if kind is PrepareConfig else []
    for flag in flags.split():
        assert flag.partition("=")[0] in complaint(*name, f"--{flag}", kind=kind)


def test_every_number_of_a_run_has_a_lower_limit() -> None:
    numbers = [key.name for key in keys(FinetuneConfig).values() if key.type in (int, float)]
    assert {"n_layer", "norm_eps", "lora_alpha"} <= {*numbers}
    for name in numbers:
        assert f"{name} is -2" in complaint(f"--{name}=-2", kind=FinetuneConfig)


WORDS = st.text(string.printable, max_size=12) | st.sampled_from(["--n_layer", "--quiet", "--", "-x", "--=1"])


@given(args=st.lists(WORDS))
@settings(max_examples=80)
def test_any_command_line_is_parsed_or_refused(args: list[str]) -> None:
    if not {"-h", "--help"} & set(args):
        try:
            train(*args)
        except TinyGPTError as error:
            assert error.message


# ---- help -------------------------------------------------------------------------------------------------------


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert not stop.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize(("command", "kind"), [(name, cli.config_class(name)) for name in cli.COMMANDS])
def test_help_explains_every_option(command: str, kind: type[Config], capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(command, capsys)
    assert shown.startswith(f"usage: tinygpt {command}") and "\n  tinygpt " in shown
    assert "(default: )" not in shown and "(default: ()" not in shown and "{,True" not in shown
    listed = [key for title, members in groups(kind).items() if title not in kind.hidden_groups for key in members]
    assert bool(kind.hidden_groups) == (command == "finetune") == (len(listed) < len(keys(kind)))
    for key in listed:
        name = key.name.upper() if POSITIONAL in key.marks else f"--{key.name}"
        for text in (name, meanings(kind)[key.name]):
            assert text in " ".join(shown.split())


def test_what_help_shows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches, limits, the names of arguments, and a line end."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = {command: help_of(command, capsys) for command in cli.COMMANDS}
    assert all(len(line) <= 80 or "  tinygpt " in line for text in shown.values() for line in text.splitlines())
    for part in ("--batch_size INT>=1 ", "--dropout FLOAT>=0,<1 ", "--quiet  ", "--tie_weights {True,False}"):
        assert part in shown["train"]
    assert "doctor [RUN ...] " in shown["doctor"] and "sample [RUN] " in shown["sample"]
    for args in (["help"], ["help", "--help"], ["--help"]):
        assert cli.main(args) == 0 and capsys.readouterr().out == cli.HELP
    assert r"(default: '\n')" in shown["sample"] and "-o PATH, --output PATH" in shown["report"]


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_bash_completes_commands_options_choices_and_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").touch()
    cli.main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    for line, completed in {
        "fine": "finetune",
        "train --n_la": "--n_layer",
        "train --norm rms": "rmsnorm",
        "sample mi": "mine.yaml",
        "prepare x --input mi": "mine.yaml",
        "report --until_e": "",
    }.items():
        words = shlex.join(["tinygpt", *line.split()])
        ask = f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_tinygpt; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.split() == completed.split(), (line, done)


@pytest.mark.parametrize("kind", [SampleConfig, EvalConfig, ExportConfig])
def test_a_run_is_the_first_argument_or_ckpt(kind: type[SampleConfig]) -> None:
    made = parse(kind, ["~/my out"])
    assert (made.ckpt, made.given, made.flags) == (os.path.expanduser("~/my out"), {"ckpt"}, {"ckpt"})
    assert made == parse(kind, ["--ckpt", "~/my out"])
    assert parse(kind, []).ckpt == "out/ckpt.pt" and not parse(kind, []).given


def test_a_home_folder_in_flags_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "a.yaml").write_text("data_dir: ~/data\nbackend: ~/x\n")
    made = train(str(tmp_path / "a.yaml"), "--out_dir=~/out")
    assert (made.data_dir, made.out_dir, made.backend) == ("/home/me/data", "/home/me/out", "~/x")
    inputs = parse(PrepareConfig, ["mine", "--input", "~/a", "b", "--val_fraction=0.2", "--input=c"])
    assert (inputs.name, inputs.val_fraction, inputs.input) == ("mine", 0.2, ("/home/me/a", "b", "c"))
