"""The task `sql`: the expected queries answer their questions, wrong queries score low, hostile queries do nothing.

The questions are answered a second time by `oracle`, in plain Python, from the text of the question alone.
"""

import functools
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE, cli_here, listing, ok
from tasks_made import examples

from tinygpt.data.run_sql import MAX_ROWS, run_query, same_rows
from tinygpt.data.tasks import TASKS, sql

ROWS = {
    table: sql.database().execute(f"select * from {table}").fetchall() for table in ("clients", "accounts", "payments")
}
Row = dict[str, Any]


# ---- the runner -------------------------------------------------------------------------------------------------

INSERTED = "select amount x from payments"  # SQLite inserts the expression of a subquery into those around it
for _ in range(6):
    INSERTED = f"select x+x+x+x+x x from({INSERTED})"
HOSTILE = {
    "nothing": "", "blanks": "  \n ", "a comment": "-- select 1", "an open comment": "/* select 1", "NUL": "\0",
    "NUL inside": "select 1\0", "half of a character": "select '\ud800'", "byte-order mark": "\ufeffselect 1",
    "Cyrillic letter": "ѕelect 1", "1 MB": f"select '{'a' * 1_000_000}'",
    "1 MB of blanks": " " * 1_000_000 + "select 1",
    "attach": "attach 'evil.db' as evil", "pragma": "pragma writable_schema = on", "vacuum": "vacuum into 'evil.db'",
    "drop": "drop table clients", "insert": "insert into clients values ('a', 'b', 'c')", "begin": "begin",
    "savepoint": "savepoint a", "temporary": "create temp table t as select 1", "explain": "explain select 1",
    "values": "values (1)", "delete": "delete from payments returning *", "reindex": "reindex", "detach": "detach main",
    "stacked": "select 1; drop table clients", "stacked reads": "select 1; select 2",
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
    "extension": "select load_extension('evil')", "readfile": "select readfile('/etc/passwd')",
    "writefile": "select writefile('evil', 'x')",
    "huge blob": "select zeroblob(1000000000)", "random blob": "select randomblob(1000000000)",
    "huge hex": "select hex(zeroblob(400000000))",
    "group_concat": "select group_concat(a.client) from payments a, payments b",
    "brackets": f"select {'(' * 190}",
    "parameter": "select ?", "no such table": "select * from persons", "no such column": "select age from clients",
    "no end": "select name from clients where", "no UTF-8": "select cast(x'ff' as text)",
    "overflow": "select sum(9223372036854775807) from payments",
}  # fmt: skip
RUNS_HOSTILE = """
import json, re, sys
from tinygpt.data.run_sql import run_query
from tinygpt.data.tasks import sql
queries = json.load(sys.stdin)
before = list(sql.database().iterdump())
results = [run_query(sql.database(), query) for _ in range(3) for query in queries]
peak = 0
if sys.platform == "linux":  # getrusage would include the process that started this one
    status = open("/proc/self/status").read()
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
elif sys.platform == "darwin":
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"results": results, "peak": peak, "unchanged": list(sql.database().iterdump()) == before}))
"""


def test_hostile_queries_get_no_rows_write_nothing_and_take_little_memory(tmp_path: Path) -> None:
    """Every hostile query three times, in a process of its own, which usually takes two seconds."""
    done = subprocess.run(
        [sys.executable, "-c", RUNS_HOSTILE], input=json.dumps(list(HOSTILE.values())), cwd=tmp_path, timeout=PATIENCE,
        env={**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [name for name, rows in zip([*HOSTILE] * 3, found["results"], strict=True) if rows is not None] == []
    assert found["unchanged"] and not listing(tmp_path) and found["peak"] < 200e6


def test_random_text_never_crashes() -> None:
    """Words of SQL and of hostile queries in random order, and random characters."""
    rng = random.Random(1)
    tokens = sorted({word for text in HOSTILE.values() if len(text) < 300 for word in re.findall(r"\w+|\S", text)})
    for _ in range(1000):
        text = "select " + " ".join(rng.choices(tokens, k=rng.randrange(1, 12)))
        text += "".join(map(chr, rng.choices(range(0x3000), k=rng.randrange(3))))
        rows = run_query(sql.database(), text)
        assert rows is None or len(rows) <= MAX_ROWS, text


HARMLESS = {
    "SELECT COUNT(*) FROM clients": [(300,)],
    " select 1;": [(1,)],
    "select count(*) from (select distinct city from clients)": [(48,)],
    "select upper(substr('abc', 2)) -- a comment": [("BC",)],
    'select count(*) > 0 from payments where month = "May"': [(1,)],
    "select max(n) from (select count(*) n from payments group by month) as months where n < 0": [(None,)],
    "select case when 2 between 1 and 3 then 'ü' end": [("ü",)],
    "select count(*) from clients c left join accounts a on a.client = c.name where a.client is null": [(0,)],
    "select kind from accounts group by kind having count(*) > 0 order by kind desc": [
        ("savings",), ("deposit",), ("current",), ("card",),
    ],
    "select 1 union select 2 union all select 2": [(1,), (2,), (2,)],
    "select round(avg(x), 1) from (select 1 as x union select 2)": [(1.5,)],
    "select exists (select 1 from payments where client not in (select name from clients))": [(0,)],
}  # fmt: skip


@pytest.mark.parametrize("query", HARMLESS)
def test_a_harmless_query_runs(query: str) -> None:
    assert run_query(sql.database(), query) == HARMLESS[query]


@pytest.mark.parametrize(
    ("first", "second", "ordered", "same"),
    [
        ([(1, "a"), (2, "b")], [(2, "b"), (1, "a")], False, True),
        ([(1, "a"), (2, "b")], [(2, "b"), (1, "a")], True, False),
        ([(1,), (1,)], [(1,)], False, False),
        ([(1, 2)], [(2, 1)], False, False),
        ([(0.1 + 0.2,)], [(0.3,)], True, True),
        ([(2,)], [(2.0,)], True, True),
        ([(2,)], [("2",)], True, False),
        ([(None,)], [], False, False),
    ],
)
def test_comparison_of_rows(first: list, second: list, ordered: bool, same: bool) -> None:
    assert same_rows(first, second, ordered) == same


# ---- the pairs --------------------------------------------------------------------------------------------------

AGGREGATE: dict[str, Callable[[list[int]], float]] = {
    "total": sum, "combined": sum, "average": np.mean, "mean": np.mean,
    "largest": max, "highest": max, "smallest": min, "lowest": min,
}  # fmt: skip
CITY_SEGMENT = {name: {"name": name, "city": city, "segment": segment} for name, city, segment in ROWS["clients"]}
ACCOUNTS = [
    CITY_SEGMENT[client] | {"client": client, "kind": kind, "value": balance}
    for client, kind, balance in ROWS["accounts"]
]
PAYMENTS = [
    CITY_SEGMENT[client] | {"client": client, "category": category, "month": month, "value": amount}
    for client, category, month, amount in ROWS["payments"]
]


def mentioned(prompt: str, column: str, rows: list[Row]) -> str | None:
    found = {value.lower() for value in pattern(tuple(sorted({row[column] for row in rows}))).findall(prompt)}
    assert len(found) <= 1, (prompt, found)
    return next((str(row[column]) for row in rows if row[column].lower() in found), None)


@functools.cache
def pattern(values: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, values))})(?!\w)", re.IGNORECASE)


def oracle(prompt: str) -> list[tuple[Any, ...]]:
    """Answer a question by reading it: which rows it is about, and what it asks of them."""
    text = prompt.lower()
    clients = list(CITY_SEGMENT.values())
    rows = ACCOUNTS if "balance" in text else PAYMENTS
    if re.search(r"(which|show the|the) (city|segment) (is|of)|: which|show the (city|segment)", text) or re.search(
        r"by name|how many \w* ?clients|number of \w+ clients|count the \w+ clients", text
    ):
        rows = clients
    for column in rows[0]:
        value = mentioned(prompt, column, rows) if column != "value" and rows is not clients else None
        if rows is clients and (column != "segment" or not re.search(r"(which|the) segment", text)):
            value = mentioned(prompt, column, rows)
        if value is not None:
            rows = [row for row in rows if row[column] == value] or rows
    if found := re.search(r"(above|over|more than|below|under|less than) (\d+)", text):
        more = found[1] in ("above", "over", "more than")
        rows = [row for row in rows if (row["value"] > int(found[2]) if more else row["value"] < int(found[2]))]
    if "name" in text and "paid" not in text:
        return [(name,) for name in sorted(row["name"] for row in rows)]
    if "paid the most" in text:
        sums: Counter[str] = Counter()
        for row in rows:
            sums[row["client"]] += row["value"]
        assert len(set(sums.values())) >= len(sums) - 3  # ties are rare, and none is where the list is cut
        return [(client,) for client, _ in sums.most_common(int(re.findall(r"\b\d\b", text)[0]))]
    if found := re.search(r"the (\d) (largest|highest|smallest|lowest) payments|(\d) (\w+) payments", text):
        order = sorted(rows, key=lambda row: row["value"], reverse=(found[2] or found[4]) in ("largest", "highest"))
        return [(row["client"], row["value"]) for row in order[: int(found[1] or found[3])]]
    if re.search("how many|number of|count the", text):
        return [(len(rows),)]
    word = next((word for word in AGGREGATE if re.search(rf"\b{word}\b", text)), None)
    if word is None:
        return [(rows[0]["city" if re.search(r"\bcity\b", text) else "segment"],)]
    if found := re.search(r"(?:per|each) (\w+)", text):
        groups: dict[str, list[int]] = {}
        for row in rows:
            groups.setdefault(row[found[1]], []).append(row["value"])
        return [(group, AGGREGATE[word](values)) for group, values in groups.items()]
    return [(AGGREGATE[word]([row["value"] for row in rows]),)]


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_expected_query_answers_its_question(split: str) -> None:
    for prompt, query in examples("sql")[split]:
        rows = sql.answer(query)
        assert rows and rows[0][-1] and same_rows(oracle(prompt), rows, ordered=" order by " in query), (prompt, query)


def test_queries_are_queries() -> None:
    for pairs in examples("sql").values():
        assert all(query.isascii() and query.startswith("select ") for _, query in pairs)


def test_prompts_and_values_of_val_and_test_are_not_in_train() -> None:
    texts = {split: [prompt for prompt, _ in pairs] for split, pairs in examples("sql").items()}
    bank = "|".join(re.escape(name) for name in [*sql.client_names(), *sql.CITIES])
    assert not [prompt for prompt in texts["train"] if re.search(rf"\b({bank})\b", prompt)]
    assert sum(re.search(rf"\b({bank})\b", prompt) is not None for prompt in texts["test"]) > 100
    numbers = {split: set(re.findall(r"\d\d+", " ".join(prompts))) for split, prompts in texts.items()}
    assert not numbers["train"] & (numbers["val"] | numbers["test"]) and len(numbers["train"]) > 100
    assert not re.search("April|November", " ".join(texts["train"]))
    assert re.search("November", " ".join(texts["test"]))


def test_every_query_runs() -> None:
    for _, query in examples("sql")["train"][:1000]:
        assert sql.answer(query) is not None


def test_half_of_test_has_new_wordings() -> None:
    """A wording is the question without its values."""

    words = [word for pair in (*sql.AGGREGATES.values(), *sql.COMPARISONS.values()) for word in pair]

    def wording(prompt: str, query: str) -> str:
        text = prompt.lower()
        for value in [*re.findall(r"'([^']+)'", query.lower()), *re.findall(r"\d+", query), *words]:
            text = text.replace(value, "_")
        return text

    train = {wording(*pair) for pair in examples("sql")["train"]}
    new = {split: [wording(*pair) not in train for pair in examples("sql")[split]] for split in ("val", "test")}
    assert not any(new["val"])
    assert [sql.group(prompt) == "new wordings" for prompt, _ in examples("sql")["test"]] == new["test"]
    assert 0.45 < np.mean(new["test"]) < 0.55


# ---- the score --------------------------------------------------------------------------------------------------


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
    shifted = [*queries[1:], queries[0]]
    runs, right = accuracy(pairs, shifted)
    assert runs == 1 and right < 0.01
    constant = Counter(query for _, query in examples("sql")["train"]).most_common(1)[0][0]
    assert accuracy(pairs, [constant] * len(pairs))[1] < 0.01
    assert accuracy(pairs, ["drop table clients"] * len(pairs)) == (0, 0)


MISTAKES: list[tuple[str, str]] = [  # what a near miss replaces, and by what
    *((r"\b(sum|avg|max|min)\((\w+)\)", rf"{name}(\2)") for name in ("sum", "avg", "max", "min", "count", "total")),
    (r"count\(\*\)", "count(*) + 1"), ("> ", "< "), ("< ", "> "), (r"(\d)(\d)0\b", r"\2\g<1>0"), (r"limit \d", ""),
    (r"( desc)? limit", lambda found: " limit" if found[1] else " desc limit"), (r" and \w+ . \S+", ""),
    (r"where (city|month|category|kind|segment|balance|amount) . \S+( and)?", lambda got: "where" if got[2] else ""),
    (r"= '(.)", "= '_"), (r"'(\w+)'", r"'\1s'"), ("group by .*", ""),
    (r"client from payments", "category from payments"),
    (r"select city from", "select segment from"), (r"select segment from", "select city from"),
    *((r"(city|month|category|kind|segment) = '\w+'", rf"\1 = '{name}'") for name in ("Oslo", "May", "tax", "card")),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), MISTAKES)
def test_a_near_miss_is_wrong(old: str, new: str) -> None:
    wrong = 0
    for prompt, query in examples("sql")["test"][:250]:
        other = re.sub(old, new, query, count=1)
        same = {other, other.replace("total(", "sum(")}
        if query not in same and not other.startswith(query.split(" limit ")[0] + " limit 0"):
            wrong += 1
            assert not sql.scores(prompt, query, other)["execution accuracy"], (prompt, query, other)
    assert wrong > 0


# ---- the commands -----------------------------------------------------------------------------------------------


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
    done = ok(folder, "train", *sizes, *steps, "--gradient_accumulation_steps=1")
    return folder


def test_prepare_writes_the_database_and_prints_the_next_command(trained: Path) -> None:
    shown = (trained / "prepared.txt").read_text()
    assert "bank.db" in shown and shown.count("[select ") == 2
    assert "next: tinygpt train configs/sql.yaml" in shown
    with sqlite3.connect(f"file:{trained}/data/sql/bank.db?mode=ro", uri=True) as connection:
        assert list(connection.iterdump()) == list(sql.database().iterdump())
    connection.close()
    assert listing(trained / "data/sql").keys() == {"bank.db", "meta.json", ".lock", "train.bin", "val.bin", "test.bin"}


def test_a_model_that_learned_nothing_scores_nothing(trained: Path) -> None:
    done = ok(trained, "eval", "--ckpt=out", "--task=sql", "--json")
    report = json.loads(done.out)
    assert report["n"] == 48 and report["exact"] == 0 and report["scores"] == {"runs": 0, "execution accuracy": 0}
    groups = report["groups"]
    assert {name: group["n"] for name, group in groups.items()} == {"known wordings": 24, "new wordings": 24}
    text = cli_here("eval", "--ckpt=out", "--task=sql", cwd=trained).out
    for part in ("execution accuracy", "new wordings: 24 prompts", "expected:  select", "fails: runs, execution"):
        assert part in text


def test_groups_are_parts_of_the_whole(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With scores that half of the examples pass: the overall share is the mean of the groups."""
    from dataclasses import replace

    judge = replace(TASKS["sql"], scores=lambda prompt, expected, response: {"even": len(prompt) % 2 == 0})
    monkeypatch.setitem(TASKS, "sql", judge)
    report = json.loads(cli_here("eval", "--ckpt=out", "--task=sql", "--json", cwd=trained).out)
    groups = report["groups"].values()
    whole = sum(group["n"] * group["even"] for group in groups) / report["n"]
    assert report["scores"]["even"] == pytest.approx(whole) and 0 < whole < 1
