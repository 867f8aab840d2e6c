"""tinygpt lab adapt: static losses are those of the API, a step follows each chunk, and the verdicts are fair."""

import re
from pathlib import Path

import pytest
import torch
from conftest import ok
from labs import shortest

from tinygpt import api
from tinygpt.base.configs.learn import LabConfig
from tinygpt.examine.experiment.stages import Records
from tinygpt.learn.lab import adapt


def test_static_losses_are_those_of_the_api_and_a_step_follows_each_chunk(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = api.load(tiny_run / "out", device="cpu"), (tiny_run / "text.txt").read_text(encoding="utf-8")[:2000]
    context, ids = model.model.config.block_size, torch.tensor(model.encode(text))
    scores = model.logits(text[:context]).log_softmax(-1).detach()[range(context - 1), ids[1:context]]
    monkeypatch.setattr(adapt, "CHUNK", 4)  # in the first context, all earlier characters are seen
    assert adapt.read(model, text[:context]) == pytest.approx(-scores.numpy(), abs=1e-5)
    monkeypatch.setattr(adapt, "CHUNK", context)  # pieces without earlier characters, as in `loss`
    pieces = text[: 20 * context + 1]
    assert adapt.read(model, pieces).mean() == pytest.approx(model.loss(pieces), abs=1e-5)
    monkeypatch.setattr(adapt, "CHUNK", 8)
    static, adapting = adapt.read(model, text), adapt.read(model, text, 1e-3)
    changed = abs(adapting - static) > 1e-5
    assert len(adapting) == len(text) - 1 and not changed[:8].any() and changed[8:16].any()
    assert adapt.read(model, text).mean() < adapting.mean() < static.mean() - 0.1


def test_the_rate_and_the_verdicts_follow_from_the_numbers() -> None:
    ways = [(adapt.STATIC, 0), (adapt.ADAPTING, 0.1), (adapt.ADAPTING, 0.2), (adapt.TRAINED, 0)]
    losses = {adapt.TUNING: (2, 1.9, 1.8, 9), adapt.SAME: (2, 1.5, 2.04, 9), adapt.OTHER: (4, 2, 3, 1)}
    cases = [{"text": text, "loss": loss, "way": way, "rate": rate, "after": 3, "ms": 1 + rate, "curve": [loss] * 10}
             for text, own in losses.items() for loss, (way, rate) in zip(own, ways, strict=True)]  # fmt: skip
    summary = adapt.summarise(Records(case | {"seed": seed} for seed in (1, 2) for case in cases), LabConfig())
    same, other, retrained, forgotten, slower = (verdict.text for verdict in summary.verdicts)
    assert "does not clearly change the loss on Shakespeare from 2.00 to 2.04" in same and "1.2 times" in slower
    assert "lowers the loss on industries from 4.00 to 3.00" in other and "lowers" in retrained
    assert "raises the loss on Shakespeare from 2.00 to 3.00" in forgotten


def test_the_trainings_hold_only_stock_phrases_of_what_is_read() -> None:
    trainings, ends = adapt.contents(8000)
    stock = re.compile(
        r"(This .{,20} comprises )?\w+ (primarily )?engaged in (the merchant wholesale distribution of)?"
    )

    def passages(text: str) -> set[str]:
        text = stock.sub("", text)
        return {text[at : at + 50] for at in range(len(text) - 49)}

    read, trained = map(passages, ends.values()), [passages(splits["train"]) for splits in trainings.values()]
    assert all(len(end & text) < 0.01 * len(end) for end in read for text in trained)


@pytest.mark.slow
def test_the_quick_lab_reads_ones_own_text_too(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Once more unto the breach. " * 50, encoding="utf-8")
    with shortest("adapt"):
        said = ok(tmp_path, "lab", "adapt", "--quick", "--text=mine.txt", "--out_dir=out").out
    assert said.count("\nverdict: ") == 6 and "adapting, rate 0.001" in said and said.count("| mine.txt (") == 1
    assert "results with your --text." in (tmp_path / "out/adapt.html").read_text(encoding="utf-8")
    (tmp_path / "mine.txt").write_text("Once more unto the brooch. " * 50, encoding="utf-8")
    *_, name = adapt.contents(300, str(tmp_path / "mine.txt"))[1]
    assert name.startswith("mine.txt (") and name not in said  # of another text, nothing is kept
