"""`tinygpt lab`: list the labs, or run one, from its first stage to its page.

tinygpt lab methods --seeds=1
"""

from pathlib import Path

from tinygpt import api
from tinygpt.base.configs import suggest
from tinygpt.base.configs.learn import LabConfig
from tinygpt.base.errors import TinyGPTError, library, require_installed
from tinygpt.base.files import folder_lock
from tinygpt.base.process import ended_by_sigterm
from tinygpt.examine.experiment.stages import Identity, fingerprint, run
from tinygpt.examine.experiment.summary import write
from tinygpt.learn.lab import (
    adapt,
    arithmetic,
    canary,
    cascade,
    confidence,
    domain,
    drift,
    facts,
    labels,
    methods,
    race,
    reports,
    scale,
    why,
)
from tinygpt.learn.lab.definition import Lab

MODULES = (facts, methods, labels, reports, domain, drift, adapt, confidence, canary, arithmetic, cascade, why, scale)
LABS: dict[str, Lab] = {module.__name__.removeprefix("tinygpt.learn.lab."): module.LAB for module in MODULES}
FORMAT = 2  # of the results; those of another format cannot be continued
BASES = {  # the commands that make the base models of labs
    "ckpt": "tinygpt train configs/shakespeare_char_fast.yaml --device=cpu",
    "pretrained": "tinygpt import smollm2 --out_dir out-smollm2",
}


def lab(config: LabConfig) -> int:
    """List the labs, or run one. Errors: TinyGPTError for an unknown lab, and those of its stages."""
    abouts = {name: entry.about for name, entry in LABS.items()} | {"race": race.ABOUT}
    if not config.name:
        print("Labs, experiments on this machine:\n")
        for name, about in abouts.items():
            print(f"  {name:<{max(map(len, abouts))}}  {about}")
        print(f"\nnext: {suggest.command('lab', 'facts', '--quick')}")
        return 0
    if config.name not in abouts:
        raise TinyGPTError(f"{config.name}: no such lab", f"choose one of {', '.join(abouts)}")
    refuse_other_keys(config)
    if config.name == "race":
        return race.race(config)
    chosen = LABS[config.name]
    own = f"out-lab-{config.name}"
    folder = Path(config.out_dir or (f"{own}-quick" if config.quick else own))
    for package in ("jinja2", "matplotlib"):  # imported now: what is wrong must not appear at the end
        library(package, "a lab")
    if config.quick and not chosen.quick:
        raise TinyGPTError(f"lab {config.name} has no quick form", f"tinygpt lab {config.name} --seeds=1")
    if chosen.ngrams:
        require_installed("the n-gram baseline", "sklearn")
    bases = {key: getattr(config, key) for key in chosen.models if key != "pretrained" or config.pretrained}
    for key, path in bases.items():
        if not any((Path(path) / name).is_file() for name in ("", "ckpt.pt")):
            raise TinyGPTError(f"--{key}={path}: no such model", BASES[key])
    stages = list(chosen.stages(config, folder))
    keys = ("quick", *chosen.settings) if chosen.quick else chosen.settings
    settings = {"format": FORMAT} | {key: getattr(config, key) for key in keys}
    models = {path: fingerprint(path) for path in bases.values()}
    data = Path(config.data_dir, config.dataset)
    if "dataset" in chosen.settings and (data / "meta.json").exists():
        dataset = api.Dataset(config.data_dir, config.dataset)
        models[str(data)] = " ".join(map(str, dataset.meta["sha256"].values()))
    identity = Identity("lab", config.name, settings, models)
    with folder_lock(folder, "lab"), ended_by_sigterm():
        print(f"lab {config.name}: {chosen.about}")
        records = run(folder, identity, stages).records
        summary = chosen.summarise(records, config)
        print(f"\n{summary.as_text()}\n")
        live = chosen.live(config, folder, records) if chosen.live else None
        used = [key for key in ("dataset", "text", *chosen.models) if key in config.given]
        results = "".join(f", results with your --{key}" for key in used)
        for path in write(summary._replace(contents=summary.contents + results), folder, config.name, live):
            print(f"written: {path}")
        print(f"\nnext: open {folder / config.name}.html in a browser")
    return 0


def refuse_other_keys(config: LabConfig) -> None:
    """Refuse keys of other labs. Errors: TinyGPTError that names these labs."""
    keys = {name: entry.keys for name, entry in LABS.items()} | {"race": race.KEYS}
    for key in sorted(config.given - keys[config.name]):
        using = ", ".join(name for name in keys if key in keys[name])
        raise TinyGPTError(f"lab {config.name} does not use --{key}", f"drop it; it is for lab {using}")
    if config.entries and config.name != "race":
        raise TinyGPTError(f"{config.entries[0]}: unexpected argument", f"tinygpt lab {config.name}")
