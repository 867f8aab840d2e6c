"""The task `sql`: the expected queries answer their questions, wrong queries score low, hostile queries do nothing."""

import dataclasses
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, listing, ok
from tasks_made import examples

from tinygpt.data.run_sql import run_query, same_rows
from tinygpt.data.tasks import TASKS, sql

INSERTED = "select amount x from payments"  # SQLite inserts the expression of a subquery into those around it
for _ in range(6):
    INSERTED = f"select x+x+x+x+x x from({INSERTED})"
HOSTILE = {
    "nothing": "", "a comment": "-- select 1", "an open comment": "/* select 1", "NUL inside": "select 1\0",
    "half of a character": "select '\ud800'",
    "1 MB": f"select '{'a' * 1_000_000}'", "1 MB of blanks": " " * 1_000_000 + "select 1",
    "attach": "attach 'evil.db' as evil", "vacuum": "vacuum into 'evil.db'", "drop": "drop table clients",
    "values": "values (1)", "delete": "delete from payments returning *",
    "stacked": "select 1; drop table clients",
    "behind a comment": "select 1 -- \n; delete from clients",
    "behind a WITH": "with a as (select 1) delete from clients",
    "endless": "select * from (with a(x) as (select 1 union all select x + 1 from a) select x from a)",
    "doubled": "select * from (with a(x) as (select 'a' union all select x || x from a) select count(x) from a)",
    "cross join": "select count(*) from payments a, payments b, payments c",
    "sort": "select a.client || b.client || c.client from payments a, payments b, payments c order by 1",
    "distinct": "select count(distinct a.client || b.client || a.amount) from payments a, payments b",
    "groups": "select a.rowid, b.rowid, max(a.client) m from payments a, payments b group by 1, 2 order by 3",
    "inserted": INSERTED,
    "slow LIKE": "select count(*) from payments a, payments b where a.client || b.client like '%a%a%a%a%a%b%z'",
    "many rows": "select a.client from payments a, payments b",
    "extension": "select load_extension('evil')", "writefile": "select writefile('evil', 'x')",
    "huge blob": "select zeroblob(1000000000)", "huge hex": "select hex(zeroblob(400000000))",
    "group_concat": "select group_concat(a.client) from payments a, payments b", "brackets": f"select {'(' * 190}",
    "parameter": "select ?", "no such table": "select * from persons", "no UTF-8": "select cast(x'ff' as text)",
    "overflow": "select sum(9223372036854775807) from payments",
}  # fmt: skip
RUNS_HOSTILE = """
import json, re, sys
from tinygpt.data.run_sql import run_query
from tinygpt.data.tasks import sql
before = list(sql.database().iterdump())
results = [run_query(sql.database(), query) for query in json.load(sys.stdin)]
status = open("/proc/self/status").read() if sys.platform == "linux" else "VmHWM: 0 kB"
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
print(json.dumps({"results": results, "peak": peak, "unchanged": list(sql.database().iterdump()) == before}))
"""


def test_hostile_queries_get_no_rows_write_nothing_and_take_little_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUNS_HOSTILE], input=json.dumps(list(HOSTILE.values())), cwd=tmp_path, timeout=PATIENCE,
        env={**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [name for name, rows in zip(HOSTILE, found["results"], strict=True) if rows is not None] == []
    assert found["unchanged"] and not listing(tmp_path) and found["peak"] < 200e6


HARMLESS = {
    "SELECT COUNT(*) FROM clients": [(300,)],
    " select 1;": [(1,)],
    "select upper(substr('abc', 2)) -- a comment": [("BC",)],
    "select max(n) from (select count(*) n from payments group by month) as months where n < 0": [(None,)],
    "select 1 union select 2 union all select 2": [(1,), (2,), (2,)],
}


@pytest.mark.parametrize("query", HARMLESS)
def test_a_harmless_query_runs(query: str) -> None:
    assert run_query(sql.database(), query) == HARMLESS[query]


@pytest.mark.parametrize(
    ("first", "second", "ordered", "same"),
    [
        ([(1, "a"), (2, "b")], [(2, "b"), (1, "a")], False, True),
        ([(1, "a"), (2, "b")], [(2, "b"), (1, "a")], True, False),
        ([(1, 2)], [(2, 1)], False, False),
        ([(0.1 + 0.2,)], [(0.3,)], True, True),
        ([(2,)], [("2",)], True, False),
        ([(None,)], [], False, False),
    ],
)
def test_comparison_of_rows(first: list, second: list, ordered: bool, same: bool) -> None:
    assert same_rows(first, second, ordered) == same


ANSWERS = {  # to a question of each kind, by a program in plain Python that read the question
    "How many energy payments are over 1560?": [(98,)],
    "What is the number of retail clients in Cork?": [(1,)],
    "For card accounts over 2480, what is the mean balance?": [(2767.875,)],
    "What is the highest balance less than 2560 of current accounts?": [(2551,)],
    "Of current accounts under 480, show the combined balance.": [(5406,)],
    "What is the lowest amount that Uma Heclist paid?": [(503,)],
    "Highest payment in Bonn in October?": [(934,)],
    "In which city is Vutrern Gour?": [("Lyon",)],
    "Show the clients in Turin by name.": [("Ada Steabick",), ("Leo Rethaix",), ("Niaxer Prem",), ("Sabrurd Ten",)],
    "For food, which 2 clients paid the most?": [("Paiyean Jedo",), ("Tushe Ki",)],
    "In May, show client and amount of the 2 highest payments.": [("Maria Shall", 2979), ("Priya Diahirn", 2969)],
    "Total balance over 1160 per segment?": [
        ("business", 161002), ("private", 216961), ("public", 190132), ("retail", 202850),
    ],
}  # fmt: skip


@pytest.mark.parametrize("prompt", ANSWERS)
def test_the_expected_query_answers_its_question(prompt: str) -> None:
    query = dict(examples("sql")["test"])[prompt]
    assert same_rows(ANSWERS[prompt], sql.answer(query) or [], ordered=" order by " in query), query


def test_prompts_and_values_of_val_and_test_are_not_in_train() -> None:
    texts = {split: [prompt for prompt, _ in pairs] for split, pairs in examples("sql").items()}
    bank = "|".join(re.escape(name) for name in [*sql.client_names(), *sql.CITIES])
    assert not [prompt for prompt in texts["train"] if re.search(rf"\b({bank})\b", prompt)]
    assert sum(re.search(rf"\b({bank})\b", prompt) is not None for prompt in texts["test"]) > 100
    numbers = {split: set(re.findall(r"\d\d+", " ".join(prompts))) for split, prompts in texts.items()}
    assert not numbers["train"] & (numbers["val"] | numbers["test"]) and len(numbers["train"]) > 100
    assert not re.search("April|November", " ".join(texts["train"]))


def accuracy(pairs: list[tuple[str, str]], responses: list[str]) -> tuple[float, float]:
    """(runs, execution accuracy) of responses."""
    judged = [sql.scores(*pair, response) for pair, response in zip(pairs, responses, strict=True)]
    return tuple(float(np.mean([each[check] for each in judged])) for check in ("runs", "execution accuracy"))


def test_expected_queries_score_everything_and_others_little() -> None:
    pairs = examples("sql")["test"]
    queries = [query for _, query in pairs]
    assert accuracy(pairs, queries) == (1, 1)
    rewritten = [re.sub(r"(\w+) = ('[^']+')", r"\2 = \1", query.replace("select", "SELECT")) + ";" for query in queries]
    assert accuracy(pairs, rewritten) == (1, 1)
    runs, right = accuracy(pairs, [*queries[1:], queries[0]])
    assert runs == 1 and right < 0.01
    near = [(*pair, re.sub(r" and \w+ . \S+|limit \d| desc", "", pair[1], count=1)) for pair in pairs]
    assert not any(sql.scores(*one)["execution accuracy"] for one in near if one[1] != one[2])
    assert accuracy(pairs, ["drop table clients"] * len(pairs)) == (0, 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the task at a hundredth of its size, and a model that has hardly learned anything."""
    folder = tmp_path_factory.mktemp("sql")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql, "SIZES", {"train": 160, "val": 12, "test": 48})
        done = ok(folder, "prepare", "sql", "--show=2")
    (folder / "prepared.txt").write_text(done.out)
    sizes = ["--dataset=sql", "--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=160", "--batch_size=8"]
    steps = ["--max_iters=5", "--eval_interval=5", "--eval_iters=1", "--device=cpu", "--quiet"]
    ok(folder, "train", *sizes, *steps, "--gradient_accumulation_steps=1")
    return folder


def test_prepare_writes_the_database_and_prints_the_next_command(trained: Path) -> None:
    shown = (trained / "prepared.txt").read_text()
    assert "bank.db" in shown and shown.count("[select ") == 2 and "next: tinygpt train configs/sql.yaml" in shown
    with sqlite3.connect(f"file:{trained}/data/sql/bank.db?mode=ro", uri=True) as connection:
        assert list(connection.iterdump()) == list(sql.database().iterdump())
    connection.close()
    assert listing(trained / "data/sql").keys() == {"bank.db", "meta.json", ".lock", "train.bin", "val.bin", "test.bin"}


def test_groups_are_parts_of_the_whole(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With scores that half of the examples pass: the overall share is the mean of the groups."""
    assert "fails: runs, execution" in ok(trained, "eval", "--ckpt=out", "--task=sql").out  # it has learned nothing
    judge = dataclasses.replace(TASKS["sql"], scores=lambda prompt, *_: {"even": len(prompt) % 2 == 0})
    monkeypatch.setitem(TASKS, "sql", judge)
    report = json.loads(ok(trained, "eval", "--ckpt=out", "--task=sql", "--json").out)
    assert {name: group["n"] for name, group in report["groups"].items()} == {"known wordings": 24, "new wordings": 24}
    whole = sum(group["n"] * group["even"] for group in report["groups"].values()) / report["n"]
    assert report["n"] == 48 and report["scores"]["even"] == pytest.approx(whole) and 0 < whole < 1
