"""`tinygpt lab`: list the labs, or run one, from its first stage to its page.

tinygpt lab methods --seeds=1
"""

from pathlib import Path

from tinygpt.checkpoint.adapter import weights_fingerprint
from tinygpt.checkpoint.store import load
from tinygpt.config import suggest
from tinygpt.config.schema import LabConfig
from tinygpt.data.dataset import Dataset
from tinygpt.errors import TinyGPTError
from tinygpt.evaluate.process import ended_by_sigterm
from tinygpt.files import folder_lock
from tinygpt.lab import (
    arithmetic,
    canary,
    cascade,
    confidence,
    domain,
    drift,
    facts,
    labels,
    methods,
    reports,
    scale,
    summary,
)
from tinygpt.lab.stages import Identity, run

LABS = {
    "facts": facts.LAB,
    "methods": methods.LAB,
    "labels": labels.LAB,
    "reports": reports.LAB,
    "domain": domain.LAB,
    "drift": drift.LAB,
    "confidence": confidence.LAB,
    "canary": canary.LAB,
    "arithmetic": arithmetic.LAB,
    "cascade": cascade.LAB,
    "scale": scale.LAB,
}


def lab(config: LabConfig) -> None:
    """List the labs, or run one. Errors: TinyGPTError for an unknown lab, and those of its stages."""
    if not config.name:
        print(listing())
        return
    if config.name not in LABS:
        raise TinyGPTError(f"{config.name}: no such lab", f"choose one of {', '.join(LABS)}")
    chosen, folder = LABS[config.name], Path(config.out_dir or f"out-lab-{config.name}{'-quick' * config.quick}")
    summary.require_packages()
    if config.quick and not chosen.quick:
        raise TinyGPTError(f"lab {config.name} has no quick form", f"tinygpt lab {config.name} --seeds=1")
    for key in sorted(config.given - chosen.keys):
        using = ", ".join(name for name, lab in LABS.items() if key in lab.keys)
        raise TinyGPTError(f"lab {config.name} does not use --{key}", f"drop it; it is for lab {using}")
    stages = chosen.stages(config, folder)
    settings = {key: getattr(config, key) for key in (*["quick"] * chosen.quick, *chosen.settings)}
    models = {path: weights_fingerprint(load(path).model) for key in chosen.models if (path := getattr(config, key))}
    data = Path(config.data_dir, config.dataset)
    if "dataset" in chosen.settings and (data / "meta.json").exists():
        models[str(data)] = " ".join(map(str, Dataset(config.data_dir, config.dataset).meta["sha256"].values()))
    identity = Identity(config.name, settings, models)
    with folder_lock(folder, "lab"), ended_by_sigterm():
        print(f"lab {config.name}: {chosen.about}")
        results = run(folder, identity, stages)
        found = chosen.summarise(results, config)
        print(f"\n{found.as_text()}\n")
        live = chosen.live(config, folder, results) if chosen.live else None
        written = summary.write(found, folder, config.name, live)
        written += [chosen.more(results, config, folder)] if chosen.more else []
        for path in written:
            print(f"written: {path}")
        print(f"\nnext: open {folder / config.name}.html in a browser")


def listing() -> str:
    """The labs, with the command of each."""
    width = max(map(len, LABS))
    return "\n".join(
        [
            "Labs, experiments on this machine:",
            "",
            *(f"  {name:<{width}}  {each.about}" for name, each in LABS.items()),
            "",
            f"next: {suggest.command('lab', 'facts', '--quick')}",
        ]
    )
