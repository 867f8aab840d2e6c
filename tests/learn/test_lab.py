"""tinygpt lab: each stage runs once, a stopped lab continues, and the numbers are those of the questions asked."""

import contextlib
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import lab_results, ok
from labs import FEW_FACTS, answered, asked, shortest
from pages import Browser, in_a_browser, node
from runs import save_model

from tinygpt.base.errors import TinyGPTError
from tinygpt.data.tasks import reader
from tinygpt.data.tasks.reader import RELATIONS, UNANSWERABLE, short
from tinygpt.examine.experiment import stages
from tinygpt.examine.experiment.stages import Identity, Records, Results, Stage
from tinygpt.learn.lab import methods
from tinygpt.learn.lab.facts import companies as world
from tinygpt.learn.lab.facts import experiment, systems
from tinygpt.learn.lab.facts.companies import Question, outcome
from tinygpt.learn.lab.facts.summary import NONE, Measured, Row, freshest
from tinygpt.learn.lab.facts.systems import Reply
from tinygpt.use.ask.search import search, with_relevance
from tinygpt.use.ask.store import open_index

X, QUIET = Identity("lab", "x", {}, {}), Identity("lab", "x", {"quick": False}, {"out": "abc"})


def counted(calls: list[str]) -> list[Stage]:
    results = {"a": 1, "b": (2, float("nan")), "c": [None, "x"]}
    return [Stage(name, 10, lambda name=name: calls.append(name) or results[name]) for name in results]


def test_each_stage_runs_once_and_one_that_failed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    broken = counted(calls)
    broken[1] = broken[1]._replace(compute=lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        stages.run(tmp_path, X, broken)
    for _ in range(2):
        assert stages.run(tmp_path, X, counted(calls)) == {"a": 1, "b": [2, None], "c": [None, "x"]}
    assert calls == ["a", "b", "c"]
    assert capsys.readouterr().out.splitlines()[0] == "stage 1 of 3: a (about 10 s; about 30 s for all that remain)"


def test_the_folder_of_another_lab_is_refused(tmp_path: Path) -> None:
    stages.run(tmp_path, QUIET, counted([]))
    path = tmp_path / "lab.json"
    content = json.loads(path.read_text())
    for written, problem in (
        (json.dumps(content | {"lab": "y"}), "holds results of lab y"),
        (json.dumps(content | {"settings": {"quick": True}}), "quick=True"),
        (json.dumps(content | {"models": {"out": "abd"}}), "out is not the one"),
        ("{", "is damaged"),
    ):
        path.write_text(written)
        with pytest.raises(TinyGPTError, match=problem):
            stages.run(tmp_path, QUIET, counted([]))
        assert path.read_text() == written


COMPANIES = world.make(5, 60)


def test_every_fact_is_in_its_document_and_asked_for_once() -> None:
    documents = COMPANIES.documents()
    for one in COMPANIES.questions:
        company = COMPANIES.companies[one.company]
        assert one.answer == company.facts.get(one.relation, "") and short(company.name) in one.text
        assert one.answer in documents[f"{one.company}.md"]
    assert sum(one.kind != "absent" for one in COMPANIES.questions) == 60 * world.FACTS
    conflicts = [one for one in COMPANIES.questions if one.kind == "conflict"]
    assert conflicts and all(one.stale in documents[f"{one.company}-2024.md"] for one in conflicts)


def test_a_change_changes_a_tenth_of_the_facts_and_nothing_else() -> None:
    after = world.changed(COMPANIES, 5, 0.1)
    assert [one.text for one in after.questions] == [one.text for one in COMPANIES.questions]
    changed = [(old, new) for old, new in zip(COMPANIES.questions, after.questions, strict=True) if old != new]
    assert len(changed) == 30
    assert all(new.kind == "changed" and new.stale == old.answer for old, new in changed)
    assert all(outcome(new, new.stale) == "stale" and outcome(new, new.answer) == "right" for _, new in changed)
    before_text, after_text = COMPANIES.documents(), after.documents()
    for old, new in changed:
        name = f"{new.company}.md"
        assert old.answer in before_text[name] and new.answer in after_text[name]
        after_text[name] = after_text[name].replace(new.answer, old.answer)
    assert after_text == before_text


def test_no_pair_has_the_wording_of_a_question() -> None:
    pairs = world.pairs(COMPANIES, 5)
    prompts = {pair["prompt"] for pair in pairs}
    assert not prompts & {one.text for one in COMPANIES.questions}
    facts = {value for company in COMPANIES.companies.values() for value in company.facts.values()}
    assert {pair["response"] for pair in pairs} == facts | {UNANSWERABLE}


def test_an_outcome_is_right_stale_wrong_or_an_abstention() -> None:
    question = Question("Who heads Ba?", "ba", "chief executive", "Ann Lo", "changed", "Bo Ra")
    said = {"Ann Lo": "right", "It is Ann Lo.": "right", "Bo Ra": "stale", "Ann Lower": "wrong", "": "abstained"}
    assert {text: outcome(question, text) for text in said} == said
    absent = question._replace(answer="", kind="absent", stale="")
    assert outcome(absent, "Ann Lo") == "wrong"


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
        (("new", "new", ""), 120.0, "keep them in documents"),  # as often right, and slower
        (("new", "new", "new"), 120.0, "train the closed-book model again"),  # more often right
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
        answered("after again", *again, "Oslo", ""),
    ]))).text  # fmt: skip
    assert said.startswith(f"If facts change, {advice}. Right answers about changed facts: 67% with an update of ")
    assert f" (1 s), {round(100 * again.count('new') / 3)}% with training the closed-book model again (2 min" in said


def test_a_connection_is_counted() -> None:
    def calling(question: Question) -> Reply:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.connect(("127.0.0.1", 9))
        return Reply("", 1.0)

    question = Question("?", "ba", "chair", "", "absent")
    assert systems.measured(calling, [question, question], [0, 1])["connections"] == 2
    assert systems.measured(lambda _: Reply("", 1.0), [question], [0])["connections"] == 0


@pytest.mark.slow
def test_the_quick_lab_shows_what_the_course_claims(lab: Callable[[str], Path]) -> None:
    folder = lab("facts")
    stored = json.loads((folder / "out/lab.json").read_text(encoding="utf-8"))["stages"]
    with shortest("facts"):
        found = Measured(Results(experiment.Tiny(folder / "out/seed-1", 1, FEW_FACTS).stages(), stored).records)

    def share(part: str, kind: str, outcome: str) -> float:
        phase, system = part.split()
        return found.share((phase, system), [kind], outcome).value()

    assert share("after reader", "changed", "right") > 0.3 > share("after reader", "changed", "stale")
    assert share("before closed", "fact", "right") > 0.4  # it has memorised facts, as they were,
    assert share("after closed", "changed", "right") > 0.2  # learns the new ones,
    assert share("after closed", "fact", "right") < share("before closed", "fact", "right") - 0.1  # and loses others
    assert share("after search", "changed", "right") > 0.3 > share("after search", "changed", "stale")
    said = (folder / "said.txt").read_text(encoding="utf-8")
    assert "verdict: No system used the network while it answered." in said
    page = (folder / "out/facts.html").read_text(encoding="utf-8")
    assert "no text of your own, and all weights of 2 models." in page


@pytest.mark.slow
@in_a_browser
def test_a_fact_that_is_edited_in_the_page_reaches_retrieval_and_not_the_closed_book_model(
    lab: Callable[[str], Path], browser: Browser
) -> None:
    out = lab("facts") / "out"
    browser.open(out / "facts.html")
    assert not any(card.is_displayed() for card in browser.all(".answers .verdict"))  # nothing was asked
    before = experiment.Tiny(out / "seed-1", 1, FEW_FACTS).world("before").questions
    results = lab_results(out)
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
    browser.assert_quiet()


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
    assert "| closed book, pretrained model with LoRA " in done.out and "Fine-tuning out-large to read" in done.out
    results = lab_results(tmp_path / "out")
    update = results["update: out-large with LoRA, seed 1"]
    assert 0 < update["weights"] < results["update: closed, seed 1"]["weights"]


def test_the_verdicts_of_methods_follow_from_the_numbers() -> None:
    def runs(accuracy: float, **figures: float) -> Records:
        return Records([{"accuracy": accuracy, "nine": accuracy - 0.1, **figures}] * 3)

    small = {"all weights": runs(0.9, forgetting=0.5), "LoRA, rank 8": runs(0.88, forgetting=0.1)}
    others = {"LoRA, rank 2": runs(0.87, forgetting=0.05), "pretrained, LoRA": runs(0.95, forgetting=0.0)}
    for ngram, said in ((0.8, "Start with all weights: "), (0.89, "Start with the n-gram baseline: ")):
        assert methods.simplest({"the n-gram baseline": runs(ngram), **small}).text.startswith(said)
    (verdict,) = methods.least_forgetting({**small, **others})
    assert "use LoRA, rank 8: its loss on" in verdict.text and "by +0.10, with an accuracy of 88.0%." in verdict.text
    assert methods.least_forgetting({**small, "LoRA, rank 2": runs(0.9)}) == []  # the base model's dataset is missing
