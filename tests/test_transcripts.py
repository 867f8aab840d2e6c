"""What the commands print and refuse: transcripts/*.txt, each case a session in a terminal.

    ## A file that does not exist                    the name of the case; "(slow)" at its end marks it as slow
    in: tuned                                        the folder to copy and work in (a fixture); without it: `tiny_run`
    >>> write("a.txt", "abc" * 99)                   Python, with the functions of support/sessions.py; values are shown
    $ printf 'no' > b.txt                            a command of the shell
    $ tinygpt sample --ckpt=nothing                  a command of tinygpt, in this process; below it, what it prints
    error: nothing: no such file                     exit status 2: one sentence, and one hint, which names no option of
      try: tinygpt train ...                         another command; no file is changed. Other codes are shown: [1]

`...` stands for anything in a line, alone for any number of lines, but for no error and no exit status.

`pytest tests/test_transcripts.py --rewrite` writes what is printed now into the files; read the difference in git.
"""

import re
from pathlib import Path

import pytest
import sessions
from conftest import cli, cli_here

FILES = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
CASES = [
    pytest.param(path, title, id=f"{path.stem}: {title}", marks=[pytest.mark.slow] * title.endswith("(slow)"))
    for path in FILES
    for title in re.findall(r"^## (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
]


@pytest.mark.parametrize(("path", "title"), CASES)
def test_transcript(path: Path, title: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    written = sessions.case(path, title)
    happened = sessions.play(written, tmp_path / "work", request.getfixturevalue)
    if happened != written and request.config.getoption("--rewrite"):
        sessions.replace(path, title, happened)
    else:
        assert happened == written


def test_a_process_of_its_own_says_the_same(run_copy: Path) -> None:
    assert cli("sample", "--ckpt=text.txt", cwd=run_copy) == cli_here("sample", "--ckpt=text.txt", cwd=run_copy)


def test_no_case_has_two_names() -> None:
    assert len({(path, title) for path, title in (case.values for case in CASES)}) == len(CASES)


def test_dots_stand_for_anything_but_an_error_and_an_exit_status() -> None:
    for expected, printed in (("a ... c", "a b c"), ("...\nc", "a\nb\nc"), ("...\nc", "c"), ("a\n...", "a\nb")):
        assert sessions.matches(expected.splitlines(), printed.splitlines())
    for expected, printed in (("a ... c", "a b\nc"), ("a\n...", "a\nerror: b"), ("a\n...", "a\n[1]"), ("a", "a\nb")):
        assert not sessions.matches(expected.splitlines(), printed.splitlines())
