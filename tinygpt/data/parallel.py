"""Map a function over a stream in several processes, with the results in order and in bounded memory.

Each process has a pipe of its own and one item at a time. So there is no lock that a killed process could hold, and
either end notices when the other is gone, which `concurrent.futures` does not promise.

    for size in in_order(len, blocks, workers=4): ...
"""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from multiprocessing import resource_tracker
from typing import Any

from tinygpt.base.errors import TinyGPTError


def in_order(function: Callable[[Any], Any], items: Iterable[Any], workers: int = 1) -> Generator[Any, None, None]:
    """Yield function(item) for each item. With one worker, it runs in this process; closing the iterator ends others.

    function: of a module, or a partial of one. Errors: those of `function`; TinyGPTError if a process is killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    processes = list[Any]()
    busy = deque[Any]()
    try:
        for item in items:
            results = []
            if len(processes) < workers:
                process, pipe = _start(function)
                processes.append(process)
            else:
                pipe = busy.popleft()
                results.append(_result(pipe))
            with contextlib.suppress(OSError):  # the process is gone: `_result` says so
                pipe.send(item)
            busy.append(pipe)
            yield from results
        yield from map(_result, busy)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _start(function: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Start a process that runs `_serve`; return it and the pipe to it."""
    context = multiprocessing.get_context("spawn")  # everywhere: a fork would copy the locks of threads
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(function, other), daemon=True)
    mask = getattr(signal, "pthread_sigmask", None)  # Windows has none
    if mask:
        resource_tracker.ensure_running()  # at its start it unblocks SIGINT
    before = mask and mask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: only the command handles Ctrl-C
    try:
        process.start()
    finally:
        if mask:
            mask(signal.SIG_SETMASK, before)
    other.close()
    return process, pipe


def _serve(function: Callable[[Any], Any], pipe: Any) -> None:
    """Answer each item with its result, until the command ends or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            try:
                result = function(item)
            except Exception as error:
                result = error
            pipe.send(result)


def _result(pipe: Any) -> Any:
    """Receive the result of a process."""
    try:
        result = pipe.recv()
    except (EOFError, OSError):
        raise TinyGPTError("a worker process was ended, perhaps for lack of memory", "--workers=1", 1) from None
    if isinstance(result, Exception):
        raise result
    return result
