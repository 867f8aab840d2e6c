"""Two nodes, which are network namespaces: one is killed and comes back, and the run ends as it should."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import lines_of, wait_for_lines
from conftest import PATIENCE, TINY_TRAIN, ok
from runs import BATCH, numbers

from tinygpt.checkpoint.store import load

LINK, ADDRESSES = "tinygpt0", ["10.77.0.1", "10.77.0.2"]
LINES = 120  # of metrics.jsonl: iterations of the run, more than before the kill


def ip(*args: str) -> str:
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """The names of two network namespaces with a link between them."""
    names = [f"tinygpt-{os.getpid()}-{node}" for node in range(2)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            peer = ("peer", "name", LINK, "netns", names[1])
            ip("link", "add", LINK, "netns", names[0], "type", "veth", *peer)
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", LINK)
                for device in ("lo", LINK):
                    ip("-n", name, "link", "set", device, "up")
            ip("netns", "exec", names[0], "true")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces need root and iproute2 ({error})")
        yield names
    finally:
        for name in names:
            kill(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def kill(node: str) -> None:
    """Kill every process of a node."""
    listed = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True).stdout
    for pid in map(int, listed.split()):
        os.kill(pid, signal.SIGKILL)


def start(nodes: list[str], node: int, folder: Path, *args: str) -> subprocess.Popen[bytes]:
    """Start torchrun on a node, as docs/how-to/gpus.md says, and with what a namespace needs in addition."""
    page = Path(__file__).parents[2] / "docs/how-to/gpus.md"
    (shared_store,) = set(re.findall(r"export (TORCH_\w+=1)", page.read_text(encoding="utf-8")))
    environment = dict([shared_store.split("=")]) | {"GLOO_SOCKET_IFNAME": LINK, "OMP_NUM_THREADS": "1"}
    rendezvous = ["--rdzv_backend=c10d", f"--rdzv_endpoint={ADDRESSES[0]}:29500", "--max_restarts=3"]
    # a namespace has no name to be found by, and a test no time: seconds until a node counts as dead
    rendezvous += [f"--local-addr={ADDRESSES[node]}", f"--rdzv_conf=is_host={1 - node},keep_alive_interval=1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *rendezvous]
    with open(folder / f"{node}.log", "ab") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", nodes[node], *command, "-m", "tinygpt", *args],
            cwd=folder,
            env=os.environ | environment,
            stdout=log,
            stderr=log,
        )


@pytest.mark.slow
def test_a_node_is_killed_and_comes_back(nodes: list[str], work: Path) -> None:
    flags = [*TINY_TRAIN, *BATCH, f"--max_iters={LINES}", f"--eval_interval={LINES}", "--checkpoint_interval=5"]
    flags += ["--learning_rate=1e-3"]
    ok(work, *flags, "--out_dir=one")
    args = [*flags, "--shard=True", "--init_from=auto", "--out_dir=two"]
    first, second = (start(nodes, node, work, *args) for node in range(2))
    wait_for_lines(first, work / "two", 10)
    kill(nodes[1])
    assert second.wait() and 10 < lines_of(work / "two") < LINES, (work / "0.log").read_text()
    second = start(nodes, 1, work, *args)
    statuses = [process.wait(2 * PATIENCE) for process in (first, second)]
    log = (work / "0.log").read_text()
    assert statuses == [0, 0] and "resuming after iteration" in log, log + (work / "1.log").read_text()
    assert load(work / "two/last.pt").step == LINES
    for (_, _, expected), (_, _, found) in zip(numbers(work / "one"), numbers(work / "two"), strict=True):
        assert found == pytest.approx(expected, abs=1e-3)
