"""Show that a restructuring changed no behaviour: run scripts/same.txt with two checkouts and compare the results.

python scripts/same.py record CHECKOUT RESULT.json             # about ten minutes on two cores
python scripts/same.py record CHECKOUT RESULT.json --only ask  # one scene, and the scene that it begins from
python scripts/same.py compare A.json B.json                   # print each difference; exit status 1 if there is one

A record has the exit status, the output and the written files of each command line, and the answer to each request to
`tinygpt serve`. It depends on the command line, files and HTTP only, not on the modules of tinygpt. Computation is
reproducible, as it uses one thread. What differs between two runs of the same code is masked: times, speeds, memory,
folders, ids, and names of modules. Of a long text only a hash is stored, and of a checkpoint that of each tensor.
"""

import argparse
import difflib
import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from same_inputs import write_inputs

SCENES = Path(__file__).with_suffix(".txt")
WORKERS = 2
PATIENCE = 600  # seconds for a command
FIXED = {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
LONGEST = 60_000  # characters of a text that is stored; of a longer one only its hash
SHOWN = 30  # lines of a difference
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH")
LEFT_OUT = ("date", "content-length")  # headers; the body is compared
BY_NAME = (".db", ".db-wal", ".db-shm", ".lock", ".memory")  # files with times inside, as event files of TensorBoard

# ---- masks -------------------------------------------------------------------------------------------------------

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
KEYS = r"\w*seconds|tokens_per_second|\w*memory_mb|per_line|created|calibration|used"
MASKS = [
    (r"(?m)^  File \".*\n(?:    .*\n)*", ""),  # the frames of a traceback
    (r"\btinygpt(?:[./]\w+)+", "<module>"),
    (r"(?m)^ *//.*\n", ""),  # comments in pages, which name modules
    (r"(?ms)^ */\*.*?\*/", ""),
    (r"sha256-[\w+/]{43}=", "<hash>"),  # of a script with its comments
    (rf'("(?:{KEYS})": ?)(?:{NUMBER}|{{[^{{}}]*}})', r"\1<measured>"),  # in JSON
    (r"(?m)^note: other programs keep .*\n", ""),  # of a busy machine
    (r"(?m)^expected:    .*", "expected: <time>"),
    (rf"\b(done in|training time\W+(?:<[^>]*>|\W)*) ?{NUMBER} min {NUMBER} s", r"\1 <time>"),
    (rf"\((about|after) {NUMBER} (?:s|min)\b[^)]*\)", r"(\1 <time>)"),  # of a stage
    (rf"{NUMBER} ms with (\d+ threads?)", r"<time> with \1"),
    (rf"{NUMBER} s( *</?t?[|d].*?){NUMBER} ms\b", r"<time>\1<time>"),  # a table of advise
    (rf"{NUMBER} s +\| +{NUMBER} ms +", "<time> | <time> "),
    (rf"(?m)^ *\d+([ ,]+\w+-[0-9a-f]{{4}})(?:[ ,]+{NUMBER}){{5}}", r"\1 <figures>"),  # lab race
    (r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d\S*", "<date>"),
    (r"(127\.0\.0\.1|localhost):\d+", r"\1:<port>"),
    (r"\b((?:chat)?cmpl)-\w+", r"\1-<id>"),
    (r"tfevents\.[\w.-]+", "tfevents.<id>"),
]
PATTERNS = [(re.compile(pattern), replacement) for pattern, replacement in MASKS]


def masked(text: str) -> str:
    """Replace what differs between two runs of the same code."""
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def kept(text: str) -> str:
    """Return a text as it is stored: itself, to be masked when it is compared, or the hash of its masked form."""
    return text if len(text) <= LONGEST else f"{len(masked(text))} characters, {sha256(masked(text).encode())}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- files -------------------------------------------------------------------------------------------------------


def describe(path: Path) -> str:
    """Return what is stored of a file: its text, or a hash; of a checkpoint its values and the hash of each tensor."""
    if path.suffix in BY_NAME or "tfevents" in path.name:
        return "present"
    data = path.read_bytes()
    if path.suffix == ".pt":
        try:
            return "\n".join(leaves(torch.load(path, weights_only=True, map_location="cpu")))
        except Exception:
            return f"no checkpoint: {sha256(data)}"
    if path.suffix == ".bin" or b"\0" in data:
        return f"{len(data)} bytes, {sha256(data)}"
    return data.decode(errors="backslashreplace")


def leaves(value: Any, name: str = "") -> list[str]:
    """List the values in a checkpoint with their names; of a tensor its dtype, shape and hash."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [f'"{name}": {value.dtype} {list(value.shape)} {sha256(data)}']
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: str(item[0]))
    elif isinstance(value, list | tuple) and len(value) < 1000:
        items = list(enumerate(value))
    else:
        last = name.rpartition(".")[2]  # as a mask expects it
        return [f'{name} "{last}": {value if isinstance(value, float | int) else repr(value)}']
    return [leaf for key, one in items for leaf in leaves(one, f"{name}.{key}" if name else str(key))]


def stats(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return the state of every file, which changes when a file is written."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            stat = path.stat()
            found[path] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
    return found


# ---- record ------------------------------------------------------------------------------------------------------


# Run each command line in a process of its own, forked from one that has imported PyTorch, which takes a second.
FORKS = """
import json, os, runpy, signal, sys, torch
for line in sys.stdin:
    args, *paths = json.loads(line)
    pid = os.fork()
    if not pid:
        signal.alarm(PATIENCE)
        for number, path in enumerate(paths):
            os.dup2(os.open(path, [os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC][number > 0], 0o600), number)
        sys.stdin = open(0, closefd=False)
        sys.argv = ["tinygpt", *args]
        runpy.run_module("tinygpt", run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
""".replace("PATIENCE", str(PATIENCE))


class Scene:
    """A folder in which the lines of a scene run in their order."""

    def __init__(self, name: str, root: Path, lines: list[str]) -> None:
        self.name, self.lines = name, lines
        self.folder = root / name
        self.ready = threading.Event()
        self.records: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.server: subprocess.Popen[str] | None = None
        self.forks: subprocess.Popen[str] | None = None
        self.port = 0
        self.places = {"<folder>": self.folder, "<root>": root, "<prefix>": Path(sys.prefix)}
        places = {"PYTHONPATH": root / "checkout", "HOME": root / "home", "TMPDIR": root / "tmp"}
        self.env = FIXED | {name: str(path) for name, path in places.items()}

    def run(self, base: "Scene | None") -> None:
        """Run every line. The folder begins as a copy of that of `base`."""
        try:
            began = time.monotonic()
            if base:
                base.ready.wait()
                shutil.copytree(base.folder, self.folder)
            else:
                write_inputs(self.folder)
            argv = [sys.executable, "-c", FORKS]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.forks = subprocess.Popen(argv, cwd=self.folder, env=self.env, **pipes)
            for line in self.lines:
                self.line(line)
            print(f"{self.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        finally:
            self.ready.set()
            for process in (self.server, self.forks):
                if process:
                    process.kill()
                    process.wait()

    def line(self, line: str) -> None:
        """Run a line: a command of the shell, a request, the end of the server, or a command of tinygpt."""
        self.counts[line] += 1
        key = f"[{self.name}] {line}" + (f" #{self.counts[line]}" if self.counts[line] > 1 else "")
        if line.startswith("$ "):
            subprocess.run(line[2:], shell=True, cwd=self.folder, env=self.env, check=True)
            return
        if line.split()[0] in METHODS:
            self.records[key] = self.request(line)
            return
        if line.endswith(" &"):
            self.start(line[:-2])
            return
        before = stats(self.folder)
        status, out, err = self.stop() if line == "stop" else self.command(line)
        after = stats(self.folder)
        self.records[key] = {"status": status, "out": self.text(out), "err": self.text(err)}
        for path in sorted(path for path in before | after if before.get(path) != after.get(path)):
            if path.parent.name.endswith("-live"):  # goes away by itself soon after the run
                continue
            content = self.text(describe(path)) if path in after else "removed"
            self.records[key][masked(str(path.relative_to(self.folder)))] = content

    def text(self, text: str) -> str:
        """Return a text as it is stored, with names in place of absolute paths."""
        for name, path in self.places.items():
            text = text.replace(str(path), name)
        return kept(text)

    def command(self, line: str) -> tuple[int, str, str]:
        """Run a command line of tinygpt; standard input is what follows <<."""
        args, _, given = line.partition("<<")
        paths = [self.folder.parent / f"{self.name}.{stream}" for stream in ("in", "out", "err")]
        paths[0].write_text(given.lstrip().replace("\\n", "\n"))
        assert self.forks and self.forks.stdin and self.forks.stdout
        print(json.dumps([shlex.split(args), *map(str, paths)]), file=self.forks.stdin, flush=True)
        status = int(self.forks.stdout.readline())
        out, err = (path.read_text(errors="replace") for path in paths[1:])
        return status, out, err

    def start(self, line: str) -> None:
        """Start a server, and wait until it answers."""
        log = open(self.folder.parent / f"{self.name}.log", "w+")  # noqa: SIM115 (for as long as the server runs)
        argv = [sys.executable, "-m", "tinygpt", *shlex.split(line)]
        self.server = subprocess.Popen(argv, cwd=self.folder, env=self.env, stdout=log, stderr=log, text=True)
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"^API: .*:(\d+)/v1.*^stop:", self.log(), re.M | re.S)):
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{line}: {self.log()}")
            time.sleep(0.1)
        self.port = int(found[1])

    def log(self) -> str:
        return (self.folder.parent / f"{self.name}.log").read_text()

    def stop(self) -> tuple[int, str, str]:
        assert self.server
        self.server.send_signal(signal.SIGTERM)
        return self.server.wait(PATIENCE), self.log(), ""

    def request(self, line: str) -> dict[str, Any]:
        """Send METHOD PATH [NAME:VALUE ...] [BODY]; TEXT*N in angle brackets stands for N repetitions of TEXT."""
        head, _, body = line.partition(" |")
        method, path, *given = head.split()
        body = re.sub(r"<([^<>]+)\*(\d+)>", lambda match: match[1] * int(match[2]), body)
        headers = {"Content-Type": "application/json"} | dict(field.split(":", 1) for field in given)
        headers = {name: value.replace("_", " ") for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, body.strip().encode(), headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        connection.close()
        fields = sorted((name.lower(), value) for name, value in answer.getheaders())
        received = [f"{name}: {value}" for name, value in fields if name not in LEFT_OUT]
        return {"status": answer.status, "headers": "\n".join(received), "body": self.text(text)}


OUTPUT: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "timeout": PATIENCE}


def read_scenes() -> dict[str, tuple[str, list[str]]]:
    """Read scripts/same.txt: the lines of each scene, and the name of the scene that it begins from."""
    scenes: dict[str, tuple[str, list[str]]] = {}
    for line in SCENES.read_text().splitlines():
        if line.startswith("["):
            name, _, base = line.strip("[]").partition(" < ")
            scenes[name] = base, []
        elif line.strip() and not line.startswith("#"):
            scenes[name][1].append(line)
    return scenes


def record(checkout: Path, only: str) -> dict[str, Any]:
    """Run all scenes, several at a time, with the tinygpt of a checkout."""
    table = read_scenes()
    if only:
        table = {name: table[name] for name in (table[only][0], only) if name}
    with tempfile.TemporaryDirectory(prefix="same-") as temporary, ThreadPoolExecutor(WORKERS) as pool:
        root = Path(temporary)
        for name in ("home", "tmp"):
            (root / name).mkdir()
        for name in ("tinygpt", "configs"):  # a copy, so that nothing is written into the checkout
            shutil.copytree(checkout / name, root / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
        scenes = {name: Scene(name, root, lines) for name, (_, lines) in table.items()}
        argv = [sys.executable, "-c", "import matplotlib.font_manager"]  # builds a cache, and says so
        subprocess.run(argv, env=next(iter(scenes.values())).env, check=True, **OUTPUT)
        for running in [pool.submit(scene.run, scenes.get(table[name][0])) for name, scene in scenes.items()]:
            running.result()
    return {key: entry for scene in scenes.values() for key, entry in scene.records.items()}


# ---- compare -----------------------------------------------------------------------------------------------------


def compare(first: dict[str, Any], second: dict[str, Any]) -> int:
    """Print the differences between two records; return their number."""
    count = 0
    for key in [*first, *(key for key in second if key not in first)]:
        if key not in first or key not in second:
            count += 1
            print(f"{key}: only in the {'first' if key in first else 'second'} record")
            continue
        one, other = first[key], second[key]
        for part in [*one, *(part for part in other if part not in one)]:
            texts = [masked(str(entry.get(part, "(none)"))) for entry in (one, other)]
            if texts[0] != texts[1]:
                count += 1
                lines = [text.splitlines() for text in texts]
                print(f"{key}: {part}")
                print("\n".join([*difflib.unified_diff(*lines, lineterm="", n=0)][2 : SHOWN + 2]))
    print(f"{len(first)} and {len(second)} entries, {count} differences")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("paths", nargs=2, type=Path, help="CHECKOUT RESULT.json, or A.json B.json")
    parser.add_argument("--only", default="", help="record this scene only")
    options = parser.parse_args()
    first, second = options.paths
    if options.action == "compare":
        return int(compare(json.loads(first.read_text()), json.loads(second.read_text())) > 0)
    began = time.monotonic()
    records = record(first.resolve(), options.only)
    second.write_text(json.dumps(records, indent=1))
    kinds = Counter("requests" if "headers" in entry else "command lines" for entry in records.values())
    print(f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())}; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
