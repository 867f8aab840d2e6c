"""tinygpt lab: each stage runs once, a stopped lab continues, and the numbers are those of the questions asked."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import cli, cli_here, refused
from scipy.stats import binomtest

from tinygpt.data.tasks.reader import RELATIONS, UNANSWERABLE, short
from tinygpt.errors import TinyGPTError
from tinygpt.lab import methods, stages, systems, world
from tinygpt.lab.facts import Share
from tinygpt.lab.stages import Stage, duration
from tinygpt.lab.systems import Reply
from tinygpt.lab.world import Question

# ---- stages ----------------------------------------------------------------------------------------------------------


def counted(calls: list[str]) -> list[Stage]:
    def stage(name: str, value: Any) -> Stage:
        def compute(results: dict[str, Any]) -> Any:
            calls.append(name)
            return value(results) if callable(value) else value

        return Stage(name, 10, compute)

    return [stage("a", 1), stage("b", lambda results: results["a"] + 1), stage("c", [None, "x"])]


def test_each_stage_runs_once_with_the_results_before_it(tmp_path: Path) -> None:
    calls: list[str] = []
    assert stages.run(tmp_path, "x", {}, counted(calls)) == {"a": 1, "b": 2, "c": [None, "x"]}
    assert stages.run(tmp_path, "x", {}, counted(calls)) == {"a": 1, "b": 2, "c": [None, "x"]}
    assert calls == ["a", "b", "c"]


def test_a_stage_that_failed_runs_again_and_those_before_it_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    broken = counted(calls)
    broken[1] = broken[1]._replace(compute=lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        stages.run(tmp_path, "x", {}, broken)
    stages.run(tmp_path, "x", {}, counted(calls))
    assert calls == ["a", "b", "c"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "stage 1 of 3: a (about 10 s; 30 s to the end)"
    assert said[-1] == "stage 3 of 3: c (about 1 s)"  # the first two took no time


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"lab": "y"}, "contains lab y"),
        ({"version": 0}, "version 0"),
        ({"settings": {"quick": True}}, "quick=True"),
        ({"stages": 3}, "is damaged"),
        (None, "is damaged"),
    ],
)
def test_the_folder_of_another_lab_is_refused(tmp_path: Path, change: dict[str, Any] | None, problem: str) -> None:
    stages.run(tmp_path, "x", {"quick": False}, counted([]))
    path = tmp_path / "lab.json"
    content = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps(content | change))
    before = path.read_text()
    with pytest.raises(TinyGPTError, match=problem):
        stages.run(tmp_path, "x", {"quick": False}, counted([]))
    assert path.read_text() == before


def test_the_expected_time_follows_the_pace_of_this_machine() -> None:
    todo = [Stage("a", 10, len), Stage("b", 20, len)]
    assert stages.speed(todo, {}) == 1
    assert stages.speed(todo, {"a": {"seconds": 30}}) == 3
    assert [duration(seconds) for seconds in (0.2, 40, 89, 100, 3000, 4800)] == [
        "1 s", "40 s", "89 s", "2 min", "50 min", "1 h 20 min",
    ]  # fmt: skip


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_labs_are_listed(tmp_path: Path) -> None:
    listed = cli_here("lab", cwd=tmp_path)
    assert listed.status == 0 and all(name in listed.out for name in ("facts", "methods", "examples"))
    assert list(tmp_path.iterdir()) == []


def test_a_lab_says_what_is_missing_and_writes_nothing(tmp_path: Path) -> None:
    assert "nosuch: no such lab" in refused(tmp_path, "lab", "nosuch")
    message = refused(tmp_path, "lab", "methods")
    assert "--ckpt=out-fast/ckpt.pt: no such model" in message and "shakespeare_char_fast.yaml" in message
    assert "tiny models only" in refused(tmp_path, "lab", "facts", "--pretrained=nowhere")


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
        restored = after_text[f"{new.company}.md"].replace(new.answer, old.answer)
        assert old.answer in before_text[f"{new.company}.md"] and new.answer in after_text[f"{new.company}.md"], (
            restored
        )


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
    assert {text: systems.outcome(question, Reply(text, 1.0)) for text in said} == said
    absent = question._replace(answer="", kind="absent", stale="")
    assert systems.outcome(absent, Reply("Ann Lo", 1.0)) == "wrong"


@pytest.mark.parametrize(("hits", "total"), [(8, 10), (0, 7), (7, 7), (500, 1000)])
def test_the_interval_of_a_share_is_that_of_scipy(hits: int, total: int) -> None:
    wanted = binomtest(hits, total).proportion_ci(method="wilson")
    assert Share(hits, total).interval() == pytest.approx((wanted.low, wanted.high), abs=2e-4)


def test_a_connection_is_counted() -> None:
    def calling(question: Question) -> Reply:
        import contextlib
        import socket

        with socket.socket() as one, contextlib.suppress(OSError):
            one.connect(("127.0.0.1", 9))
        return Reply("", 1.0)

    question = Question("?", "ba", "chair", "", "absent")
    assert systems.ask_all(calling, [question, question]).connections == 2
    assert systems.ask_all(lambda _: Reply("", 1.0), [question]).connections == 0


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quick lab was killed in its second training, and then finished."""
    folder = tmp_path_factory.mktemp("lab")
    command = [sys.executable, "-m", "tinygpt", "lab", "facts", "--quick", "--out_dir=out"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if "update: trained again" in line:
                break
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode in (143, -signal.SIGTERM)
    done = cli("lab", "facts", "--quick", "--out_dir=out", cwd=folder, timeout=300)
    assert done.status == 0, done.err
    assert done.out.startswith("stage ") and "build: closed" not in done.out  # finished before the kill
    (folder / "said.txt").write_text(done.out, encoding="utf-8")
    return folder


def test_the_quick_lab_shows_what_the_course_claims(quick: Path) -> None:
    said = (quick / "said.txt").read_text(encoding="utf-8")
    results = {
        name: entry["result"] for name, entry in json.loads((quick / "out/lab.json").read_text())["stages"].items()
    }
    questions = [Question(*each) for each in results["questions, seed 1"]]

    def share(stage: str, kind: str, outcome: str) -> float:
        answers = results[f"{stage}, seed 1"]
        pairs = zip(answers["questions"], answers["outcomes"], strict=True)
        found = [got for number, got in pairs if questions[number].kind == kind]
        return found.count(outcome) / len(found)

    assert share("after: reader", "changed", "right") > 0.3 > share("after: reader", "changed", "stale")
    assert share("after: closed", "changed", "right") < 1
    assert "verdict: No data left this machine." in said
    assert results["update: index, seed 1"]["seconds"] < results["update: trained again, seed 1"]["seconds"]
    for name, entry in results.items():
        if "connections" in entry:
            assert entry["connections"] == 0, name


def test_the_page_is_one_file_without_requests(quick: Path) -> None:
    page = (quick / "out/facts.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert (quick / "out/facts.png").read_bytes().startswith(b"\x89PNG")
    for heading in ("Retrieve, fine-tune or train?", "Before and after the change", "closed book, trained again"):
        assert heading in page


# ---- lab methods, lab examples ---------------------------------------------------------------------------------------


def test_methods_are_compared(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_run = ["--max_iters=4", "--eval_interval=4", "--batch_size=4", "--eval_iters=1"]
    sizes = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=64", "--position=rope", "--device=cpu"]
    data = f"--data_dir={tiny_data / 'data'}"
    assert cli_here("train", "--dataset=tiny", data, *sizes, *short_run, cwd=tmp_path).status == 0
    monkeypatch.setattr(methods, "METHODS", {
        "from scratch, no pretraining": methods.Method("train", [*methods.SCRATCH.split(), *short_run], ""),
        "all weights": methods.Method("finetune", [methods.FULL, *short_run]),
        "LoRA, rank 8": methods.Method("finetune", [methods.LORA, *short_run]),
    })  # fmt: skip
    done = cli_here("lab", "methods", "--seeds=2", "--ckpt=out", cwd=tmp_path)
    assert done.status == 0, done.err
    rows = [line for line in done.out.splitlines() if line.startswith(("| from", "| all", "| LoRA", "| n-grams"))]
    assert len(rows) == 4 and all(" % " in row for row in rows)
    assert "verdict: Start with n-grams" in done.out  # four iterations teach nothing
    assert (tmp_path / "out-lab-methods/methods.html").exists()
