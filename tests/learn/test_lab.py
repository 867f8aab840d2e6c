"""tinygpt lab: each stage runs once, a stopped lab continues, and the numbers are those of the questions asked."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import lab_results, ok, refused, until
from labs import FEW_FACTS, answered, asked, shortest
from pages import Browser, in_a_browser, node
from runs import save_model
from scipy.stats import binomtest

from tinygpt.base.errors import TinyGPTError
from tinygpt.base.terminal import duration
from tinygpt.data.tasks import companies as world
from tinygpt.data.tasks import reader
from tinygpt.data.tasks.companies import Question, outcome
from tinygpt.data.tasks.reader import RELATIONS, UNANSWERABLE, short
from tinygpt.examine.experiment import stages
from tinygpt.examine.experiment.stages import Identity, Records, Results, Stage
from tinygpt.examine.experiment.summary import Share, Table, gap, spread
from tinygpt.learn.lab import methods
from tinygpt.learn.lab.facts import experiment, systems
from tinygpt.learn.lab.facts.summary import NONE, Measured, Row, freshest
from tinygpt.learn.lab.facts.systems import Reply
from tinygpt.training.log import read_metrics
from tinygpt.use.ask.answer import Reader
from tinygpt.use.ask.search import search, with_relevance
from tinygpt.use.ask.store import open_index

# ---- stages ----------------------------------------------------------------------------------------------------------


X, QUIET = Identity("lab", "x", {}, {}), Identity("lab", "x", {"quick": False}, {"out": "abc"})


def counted(calls: list[str]) -> list[Stage]:
    def stage(name: str, value: Any) -> Stage:
        def compute() -> Any:
            calls.append(name)
            return value

        return Stage(name, 10, compute)

    return [stage("a", 1), stage("b", (2, float("nan"))), stage("c", [None, "x"])]


def test_each_stage_runs_once_and_one_that_failed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    broken = counted(calls)
    broken[1] = broken[1]._replace(compute=lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        stages.run(tmp_path, X, broken)
    for _ in range(2):
        assert stages.run(tmp_path, X, counted(calls)) == {"a": 1, "b": [2, None], "c": [None, "x"]}
    assert calls == ["a", "b", "c"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "stage 1 of 3: a (about 10 s; about 30 s for all that remain)"
    assert said[-1] == "stage 3 of 3: c (about 1 s)"  # the first two took no time


def test_records_are_what_was_measured_with_what_was_varied(tmp_path: Path) -> None:
    cases = [{"method": method, "seed": seed} for seed in (1, 2) for method in ("a", "b")]
    figures: list[Any] = [{"x": 0.25}, [{"x": 1, "y": 2}, {"x": 3}], {"x": 0.75}, None]
    made = [Stage(str(number), 1, lambda number=number: figures[number], cases[number]) for number in range(4)]
    for _ in range(2):  # measured, and read from the file
        records = stages.run(tmp_path, X, made).records
        assert records == [
            cases[0] | {"x": 0.25},
            cases[1] | {"x": 1, "y": 2},
            cases[1] | {"x": 3},
            cases[2] | {"x": 0.75},
        ]
    assert records.where(method="a", seed=2) == [records[3]] and not records.where(seed=3)
    assert {key: own.values("x") for key, own in records.by("method").items()} == {"a": [0.25, 0.75], "b": [1, 3]}
    assert list(records.by("seed", "method")) == [(1, "a"), (1, "b"), (2, "a")]
    assert isinstance(records.by("seed")[1], Records) and records.where(method="a").percent("x") == 50


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"lab": "y"}, "holds results of lab y"),
        ({"settings": {"quick": True}}, "quick=True"),
        ({"models": {"out": "abd"}}, "out is not the one"),
        (None, "is damaged"),
        ({"stages": []}, "is damaged"),
        ({"models": ["out"]}, "is damaged"),
        ({"settings": None}, "is damaged"),
    ],
)
def test_the_folder_of_another_lab_is_refused(tmp_path: Path, change: dict[str, Any] | None, problem: str) -> None:
    stages.run(tmp_path, QUIET, counted([]))
    path = tmp_path / "lab.json"
    content = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps(content | change))
    before = path.read_text()
    with pytest.raises(TinyGPTError, match=problem):
        stages.run(tmp_path, QUIET, counted([]))
    assert path.read_text() == before


def test_results_of_an_earlier_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    earlier = {"lab": "scale", "settings": {"quick": True, "dataset": "shakespeare_char"}, "models": {}, "stages": {}}
    (tmp_path / "out/lab.json").write_text(json.dumps(earlier))
    (tmp_path / "out/.lock").touch()
    said = refused(tmp_path, "lab", "scale", "--quick", "--out_dir=out")
    assert "out holds results of lab scale; this is lab scale with format=2" in said and "delete out" in said


def test_the_expected_time_follows_the_pace_of_this_machine() -> None:
    todo = [Stage("a", 10, len), Stage("b", 20, len)]
    assert stages.speed(todo, {}) == 1
    assert stages.speed(todo, {"a": {"seconds": 30}}) == 3
    assert [duration(seconds) for seconds in (0.2, 40, 89, 100, 3000, 3600, 4800)] == [
        "1 s", "40 s", "89 s", "2 min", "50 min", "1 h", "1 h 20 min",
    ]  # fmt: skip


# ---- lab facts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def companies() -> world.World:
    return world.make(5, 60)


def test_every_fact_is_in_its_document_and_asked_for_once(companies: world.World) -> None:
    documents = companies.documents()
    for one in companies.questions:
        company = companies.companies[one.company]
        assert one.answer == company.facts.get(one.relation, "") and short(company.name) in one.text
        assert one.answer in documents[f"{one.company}.md"]
    assert sum(one.kind != "absent" for one in companies.questions) == 60 * world.FACTS
    conflicts = [one for one in companies.questions if one.kind == "conflict"]
    assert conflicts and all(one.stale in documents[f"{one.company}-2024.md"] for one in conflicts)


def test_a_change_changes_a_tenth_of_the_facts_and_nothing_else(companies: world.World) -> None:
    after = world.changed(companies, 5, 0.1)
    assert [one.text for one in after.questions] == [one.text for one in companies.questions]
    changed = [(old, new) for old, new in zip(companies.questions, after.questions, strict=True) if old != new]
    assert len(changed) == 30
    assert all(new.kind == "changed" and new.stale == old.answer != new.answer for old, new in changed)
    before_text, after_text = companies.documents(), after.documents()
    different = {name for name in before_text if before_text[name] != after_text[name]}
    assert different == {f"{new.company}.md" for _, new in changed}
    for old, new in changed:
        name = f"{new.company}.md"
        assert old.answer in before_text[name] and new.answer in after_text[name]
        after_text[name] = after_text[name].replace(new.answer, old.answer)
    assert after_text == before_text


def test_a_new_value_is_never_part_of_the_old_one_nor_the_other_way_round() -> None:
    rng = reader.Rng("values")
    for relation in RELATIONS:
        for _ in range(200):
            value = RELATIONS[relation].value(rng)
            other = world.other_value(rng, relation, value)
            question = Question("?", "ba", relation, other, "changed", value)
            assert outcome(question, value) == "stale" and outcome(question, other) == "right"


def test_no_pair_has_the_wording_of_a_question(companies: world.World) -> None:
    pairs = world.pairs(companies, 5)
    prompts = {pair["prompt"] for pair in pairs}
    assert not prompts & {one.text for one in companies.questions}
    facts = {value for company in companies.companies.values() for value in company.facts.values()}
    assert {pair["response"] for pair in pairs} == facts | {UNANSWERABLE}
    only = {(one.company, one.relation) for one in companies.questions[:2]}
    assert len(world.pairs(companies, 5, only)) == 2 * world.WORDINGS
    assert set(RELATIONS) >= {one.relation for one in companies.questions}


def test_an_outcome_is_right_stale_wrong_or_an_abstention() -> None:
    question = Question("Who heads Ba?", "ba", "chief executive", "Ann Lo", "changed", "Bo Ra")
    said = {"Ann Lo": "right", "It is Ann Lo.": "right", "Bo Ra": "stale", "Ann Lower": "wrong", "": "abstained"}
    assert {text: outcome(question, text) for text in said} == said
    absent = question._replace(answer="", kind="absent", stale="")
    assert outcome(absent, "Ann Lo") == "wrong"


def test_the_sample_has_each_kind_in_its_share(companies: world.World) -> None:
    questions = world.changed(companies, 5, 0.1).questions
    chosen = [questions[number].kind for number in world.sample(questions, 60)]
    rare = min(6, sum(one.kind == "conflict" for one in questions))
    assert chosen.count("changed") == 15 and chosen.count("absent") == 12 and chosen.count("conflict") == rare
    assert len(chosen) == 60 and world.sample(questions, 60) == world.sample(questions, 60)


def test_the_majority_is_the_most_frequent_answer_to_the_same_question() -> None:
    known = [Question("?", "ba", relation, answer, "fact") for relation, answer in (
        ("chair", "Ann Lo"), ("chair", "Bo Ra"), ("chair", "Bo Ra"), ("seat", "Oslo"), ("chair", ""), ("chair", ""),
        ("chair", ""),
    )]  # fmt: skip
    answer = systems.majority(known)
    assert [answer(one).text for one in (known[0], known[3], known[4])] == ["Bo Ra", "Oslo", "Bo Ra"]
    assert answer(Question("?", "ba", "founded", "", "absent")).text == ""  # no company of a small world has this fact


def test_answers_are_judged_by_what_was_right_at_the_time() -> None:
    found = Measured(Records([
        *asked(1, 2),
        answered("before x", "old", "old", "new", "Oslo", ""),
        answered("after x", "old", "new", "", "Bern", "Rome", sure=0.6),
        answered("after x", "new", "new", "new", "Oslo", "Rome", sure=0.8, seed=2),
    ]))  # fmt: skip
    before, after = ("before", "x"), ("after", "x")
    assert found.share(before, ["changed"], "right") == (1, 3)  # a system that is not updated
    assert found.share(before, ["changed"], "stale") == (2, 3)
    assert found.share(after, ["changed"], "right") == (4, 6)
    assert found.share(after, ["changed"], "abstained") == (1, 6)
    assert found.confidence(after) == pytest.approx(0.7) and found.confidence(before) is None
    row = Row("x", NONE, before, NONE, after)
    assert found.right(row) == pytest.approx((6 * 4 / 6 + 2 * 1 / 2 + 2 * 0 / 2) / 10) and found.connections(row) == 3


@pytest.mark.parametrize(
    ("again", "seconds", "advice"),
    [
        (("new", "new", "", "Oslo", ""), 120.0, "keep them in documents"),  # as often right, and slower
        (("new", "", "", "Oslo", ""), 120.0, "keep them in documents"),
        (("new", "new", "new", "Oslo", ""), 120.0, "train the closed-book model again"),  # more often right
        (("new", "new", "", "Oslo", ""), 0.5, "train the closed-book model again"),  # as often right, and faster
    ],
)
def test_documents_are_compared_with_training_again(again: tuple[str, ...], seconds: float, advice: str) -> None:
    """Not with a model that cannot know the new facts, nor only with one that loses the old ones."""
    costs = {"index": 1.0, "closed": 9.0, "again": seconds}
    said = freshest(Measured(Records([
        *asked(1),
        *({"phase": "update", "system": system, "seconds": cost} for system, cost in costs.items()),
        answered("after reader", "new", "new", "", "Oslo", ""),
        answered("before closed", "old", "old", "old", "Oslo", ""),
        answered("after closed", "new", "", "", "Bern", ""),
        answered("after again", *again),
    ]))).text  # fmt: skip
    assert f"If facts change, {advice}" in said
    right = round(100 * again.count("new") / 3)
    assert f"67% with an update of the index ({duration(1.0)})" in said
    assert f"{right}% with training the closed-book model again ({duration(seconds)})" in said
    assert f"33% with fine-tuning it on the changes alone ({duration(9.0)})" in said
    assert "after which 0% are right about unchanged facts, instead of 100%" in said


@pytest.mark.parametrize(("hits", "total"), [(8, 10), (0, 7), (7, 7), (500, 1000)])
def test_the_interval_of_a_share_is_that_of_scipy(hits: int, total: int) -> None:
    wanted = binomtest(hits, total).proportion_ci(method="wilson")
    assert str(Share(hits, total)).startswith(f"{100 * hits / total:.0f}% (")
    assert Share(hits, total).interval() == pytest.approx((wanted.low, wanted.high), abs=2e-4)


def test_a_connection_is_counted() -> None:
    def calling(question: Question) -> Reply:
        import contextlib
        import socket

        with socket.socket() as one, contextlib.suppress(OSError):
            one.connect(("127.0.0.1", 9))
        return Reply("", 1.0)

    question = Question("?", "ba", "chair", "", "absent")
    assert systems.measured(calling, [question, question], [0, 1])["connections"] == 2
    assert systems.measured(lambda _: Reply("", 1.0), [question], [0])["connections"] == 0


SMALL = experiment.Size(companies=15, closed=220, update=40, sample=20, facts=2, changes=2, reading=2)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the lab, with 15 companies, was killed in a training and then finished, each time in a process
    of its own; on Linux it has no network."""
    folder = tmp_path_factory.mktemp("lab")
    code = "import sys; from tinygpt.cli import main; from tinygpt.learn.lab.facts import experiment"
    code += f"; experiment.QUICK = experiment.Size{tuple(SMALL)}; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "lab", "facts", "--quick", "--out_dir=out"]
    without = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") and subprocess.run([*without, "true"], capture_output=True).returncode == 0:
        command = [*without, *command]
    if sys.platform != "win32":  # there SIGTERM ends Python at once, and the training goes on
        log = folder / "out/seed-1/again/metrics.jsonl"
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            until(lambda: process.poll() is not None or (log.exists() and log.read_text()), 600)
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
        assert process.returncode in (143, -signal.SIGTERM)
        assert "after: closed" not in lab_results(folder / "out")  # it was in the training
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("build: closed" in done.stdout) == (sys.platform == "win32")  # finished before the kill
    (folder / "said.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_quick_lab_shows_what_the_course_claims(quick: Path) -> None:
    said = (quick / "said.txt").read_text(encoding="utf-8")
    results = lab_results(quick / "out")
    place = experiment.Tiny(quick / "out/seed-1", 1, SMALL)
    known = {name: {"result": result} for name, result in results.items()}
    found = Measured(Results(place.stages(), known).records)

    def share(part: str, kind: str, outcome: str) -> float:
        phase, _, system = part.partition(": ")
        return found.share((phase, system), [kind], outcome).value()

    assert share("after: reader", "changed", "right") > 0.3 > share("after: reader", "changed", "stale")
    # it has memorised facts, as they were (8 questions ask for those that change; 1 to 5 are remembered, by rounding),
    assert share("before: closed", "fact", "right") > 0.3 and share("before: closed", "changed", "right") < 0.1
    assert share("after: closed", "changed", "right") > 0.4  # learns the new ones,
    assert share("after: closed", "fact", "right") < share("before: closed", "fact", "right") - 0.1  # and loses others
    assert share("after: search", "changed", "right") > 0.5 and share("after: majority", "fact", "right") < 0.4
    again = results["update: again, seed 1"]  # it was killed and resumed: both parts count
    assert again["seconds"] == max(entry["seconds"] for entry in read_metrics(quick / "out/seed-1/again"))
    assert "verdict: No system used the network while it answered." in said and "(tinygpt lab canary does)" in said
    assert "with training the closed-book model again" in " ".join(said.split())


@pytest.mark.slow
def test_the_page_has_what_is_compared_and_a_place_to_ask(lab: Callable[[str], Path]) -> None:
    page = (lab("facts") / "out/facts.html").read_text(encoding="utf-8")
    for heading in (
        "Retrieve, fine-tune or train?",
        "Right answers before and after the change",
        "closed book, trained again",
        "search only",
        '<h2 id="live-title">Change a fact, and ask</h2>',
    ):
        assert heading in page
    assert "no text of your own, and all weights of 2 models." in page


@pytest.mark.slow
@in_a_browser
def test_a_fact_that_is_edited_in_the_page_reaches_retrieval_and_not_the_closed_book_model(
    quick: Path,
    browser: Browser,
) -> None:
    browser.open(quick / "out/facts.html")
    assert not any(card.is_displayed() for card in browser.all(".answers .verdict"))  # nothing was asked
    before = experiment.Tiny(quick / "out/seed-1", 1, SMALL).world("before").questions
    results = lab_results(quick / "out")
    replies = {name: results[f"before: {name}, seed 1"]["answers"] for name in ("reader", "closed")}
    known = next(
        one
        for one, *said in zip(before, *replies.values(), strict=True)
        if one.kind == "fact" and said == [one.answer, one.answer] and RELATIONS[one.relation].value is reader.person
    )

    def said() -> list[str]:
        browser.run(
            "document.querySelector('#question').value = arguments[0];"
            "document.querySelector('#ask').requestSubmit()", known.text
        )  # fmt: skip
        return [browser.find(f"#{name}-answer").text for name in ("reader", "closed")]

    assert said() == [known.answer, known.answer]
    browser.run(
        "const box = document.querySelector('#company'); box.value = arguments[0];"
        "box.dispatchEvent(new Event('change', {bubbles: true}));"
        "const text = document.querySelector('#document');"
        "text.value = text.value.replaceAll(arguments[1], 'Greta Thorne');"
        "text.dispatchEvent(new Event('input', {bubbles: true}))", known.company, known.answer
    )  # fmt: skip
    assert said() == ["Greta Thorne", known.answer]
    browser.click("#restore")
    assert said() == [known.answer, known.answer]
    assert browser.driver.get_log("browser") == [] and browser.requests() == []


@pytest.mark.slow
@in_a_browser
def test_the_page_answers_as_the_commands_do(quick: Path, browser: Browser) -> None:
    """Words are not reduced to their stems in the page, so a few searches differ; with the same passages, nothing."""
    browser.open(quick / "out/facts.html")
    place = experiment.Tiny(quick / "out/seed-1", 1, SMALL)
    questions = [one for one in place.world("before").questions if one.kind == "fact"][:20]
    with open_index(place.folder / "before.db") as index:
        hits = [search(index, one.text, 3) for one in questions]
        loaded = place.reader("reader")
        reader = Reader(loaded.model, loaded.tokenizer, "reader")  # not only quotations
        read = [reader.read(one.text, some) for one, some in zip(questions, hits, strict=True)]
    run = "const data = JSON.parse(document.querySelector('#data').textContent);"
    found = browser.run(
        run + "const passages = Facts.passages(data.documents);"
        "return arguments[0].map((one) => Facts.search(passages, one, 3)[0].text)", [one.text for one in questions]
    )  # fmt: skip
    same = [text == " ".join(some[0].text.split()) for text, some in zip(found, hits, strict=True)]
    assert sum(same) > 0.8 * len(same)
    given = [[{"title": hit.title, "text": " ".join(hit.text.split())} for hit in some] for some in hits]
    reading = run + "return Facts.read(TinyGPT.load(data.reader), ...arguments)"
    answers = [browser.run(reading, one.text, some) for one, some in zip(questions, given, strict=True)]
    whole = [(one, page) for one, page in zip(read, answers, strict=True) if not one.note]
    assert len(whole) > 5
    for one, page in whole:
        assert page["text"] == one.text and page["probability"] == pytest.approx(one.probability, abs=0.02)


def test_the_page_searches_with_the_relevance_of_ask(tmp_path: Path) -> None:
    """On words that are their own stems."""
    (tmp_path / "docs").mkdir()
    texts = {
        "norvik": "# Norvik\n\nThe chair is Lin Nax.\n\n## Toys\n\nNorvik sold 40 toy cars. Norvik has a shop.\n",
        "aug": "# AUG\n\n## Chair\n\nHana Jipel.\n\n## Shop\n\nA text about the shop of AUG, and no chair in it.\n",
        "mill": "# Mill\n\nA mill.\n\n## Wind\n\nA mill in the wind.\n\n## Rain\n\nNo mill in the rain: it is full.\n",
    }
    documents = {f"{name}.md": text for name, text in texts.items()}
    for name, text in documents.items():
        (tmp_path / "docs" / name).write_text(text)
    ok(tmp_path, "ask", "Who?", "docs", "--index=index.db", "--embeddings=none")
    script = (Path(experiment.__file__).parent / "search.js").read_text(encoding="utf-8")
    code = f"{script}\nreturn Facts.search(Facts.passages(input.documents), input.question, 9)"
    with open_index(tmp_path / "index.db") as index:
        for question in ("chair norvik", "aug shop", "lin nax chair", "mill chair shop"):
            hits = search(index, question, 9)
            found = [(one["title"], one["score"]) for one in node(code, documents=documents, question=question)]
            scores = [pytest.approx(hit.relevance) for hit in with_relevance(index, question, hits)]
            assert found == list(zip([hit.title for hit in hits], scores, strict=True)) and len(found) > 1


@pytest.mark.slow
def test_a_pretrained_model_is_compared_and_adds_stages_only(
    lab: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pretrained model is an imported one with a chat template, which is untrained."""
    shutil.copytree(lab("facts") / "out", tmp_path / "out")
    save_model(tmp_path / "theirs", "llama", context=1024)
    ok(tmp_path, "import", "theirs", "--out_dir=out-large")
    monkeypatch.setattr(reader, "SIZES", {name: {"train": 100, "val": 10, "test": 10} for name in reader.SIZES})
    with shortest("facts"):
        done = ok(tmp_path, "lab", "facts", "--quick", "--out_dir=out", "--pretrained=out-large")
    assert "build: closed" not in done.out and "stage 18 of 30: build: out-large with LoRA" in done.out
    for name in ("retrieval: pretrained model zero-shot", "closed book, pretrained model with LoRA"):
        assert f"| {name} " in done.out
    assert "Fine-tuning out-large to read" in done.out
    results = lab_results(tmp_path / "out")
    for name in ("before: out-large zero-shot", "after: out-large with LoRA", "after: out-large fine-tuned to read"):
        assert len(results[f"{name}, seed 1"]["answers"]) == FEW_FACTS.sample
    assert results["update: out-large with LoRA, seed 1"]["commands"] == 3
    assert 0 < results["update: out-large with LoRA, seed 1"]["weights"] < results["update: closed, seed 1"]["weights"]
    recorded = re.search(r'"recorded": ?(\{.*?\})[,}]', (tmp_path / "out/facts.html").read_text(encoding="utf-8"))
    assert recorded and "out-large with LoRA" in recorded[1]


def test_a_full_disk_keeps_the_finished_stages(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root on Linux")
    try:
        todo = [Stage("small", 1, lambda: 1), Stage("large", 1, lambda: "x" * 100_000)]
        with pytest.raises(TinyGPTError, match="no space left") as failed:
            stages.run(tmp_path, X, todo)
        assert "finished stages are kept" in failed.value.text()
        todo[1] = Stage("large", 1, lambda: 2)
        assert stages.run(tmp_path, X, todo) == {"small": 1, "large": 2}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# ---- the summary -----------------------------------------------------------------------------------------------------


def test_values_that_are_missing_have_words() -> None:
    nan, infinity = float("nan"), float("inf")
    for values in ([3, nan, 1, 2], [nan, 3, 1, 2], [1, 2, 3]):
        assert spread(values, ".1f") == "2.0 (1.0 to 3.0)"
    assert spread([0.9, infinity, infinity], ".2f") == "none (0.90 to none)"
    assert [spread(values, ".2f") for values in ([infinity] * 2, [nan] * 2, [nan, 0.5])] == ["none", "none", "0.50"]
    assert Table("Wrong answers", [], "How to read it.").as_text() == "Wrong answers: none"


def test_a_difference_has_no_rounding_error() -> None:
    assert gap(0.9, 0.88) == 0.02 < 0.9 - 0.88 and gap(0.82, 0.8) == 0.02 > 0.82 - 0.8
    assert f"{gap(0.3, 0.1 + 0.2):+.1f}" == "+0.0"


# ---- lab methods -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_methods_are_compared(lab: Callable[[str], Path]) -> None:
    folder = lab("methods")
    said = (folder / "said.txt").read_text(encoding="utf-8")
    rows = [line for line in said.splitlines() if line.startswith(("| from", "| all", "| LoRA", "| n-gram"))]
    assert len(rows) == 4 and all("% |" in row or "%  " in row for row in rows)
    figures = lab_results(folder / "out")["n-gram baseline"]
    assert 0 < figures["nine"] < figures["accuracy"]  # a quarter of the lines is easy
    assert "verdict: Start with the n-gram baseline" in said  # four iterations teach nothing


def test_the_verdicts_of_methods_follow_from_the_numbers() -> None:
    def runs(accuracy: float, **figures: float) -> Records:
        return Records([{"accuracy": accuracy, "nine": accuracy - 0.1, **figures}] * 3)

    small = {"all weights": runs(0.9, forgetting=0.5), "LoRA, rank 8": runs(0.88, forgetting=0.1)}
    large = {"pretrained, LoRA": runs(0.95, forgetting=0.0)}
    worse = {"LoRA, rank 2": runs(0.87, forgetting=0.05)}
    chosen = methods.simplest({"the n-gram baseline": runs(0.8), **small}).text
    assert chosen == ("Start with all weights: it has an accuracy of 90.0%; no method has more.")
    assert methods.simplest({"the n-gram baseline": runs(0.89), **small}).text == (
        "Start with the n-gram baseline: it has an accuracy of 89.0%; the best, all weights, has 90.0%."
    )
    (verdict,) = methods.least_forgetting({**small, **worse, **large})
    assert (
        "use LoRA, rank 8: its loss on the base model's text changes by +0.10, with an accuracy of 88.0%."
        in verdict.text
    )
    less = methods.least_forgetting({"all weights": runs(0.9, forgetting=-0.02)})[0].text
    assert "changes by -0.02" in less
    assert methods.near_best({"a": runs(0.26), "b": runs(0.24)}) == ["a", "b"]  # 0.26 - 0.02 is more than 0.24
    assert methods.least_forgetting({**small, "LoRA, rank 2": runs(0.9)}) == []  # the base model's dataset is missing
