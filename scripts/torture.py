"""Run the proofs of the reliability contract at their full counts, and print the figures of each.

python scripts/torture.py                              # all proofs, about half an hour on two idle cores
python scripts/torture.py --share=0.1                  # a tenth of the counts
python scripts/torture.py -k "disk_full or signals"    # other options are pytest's

The proofs are tests/test_reliability.py and tests/training/test_matrix.py. The exit status is 1 if one of them fails.
"""

import argparse
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests"


class Table:
    """A pytest plugin that prints the verdict and the figures of each proof, and the failures."""

    titles: dict[str, str]

    def __init__(self) -> None:
        self.failed: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        docs = {item.nodeid: getattr(item, "function", item).__doc__ or item.name for item in items}
        self.titles = {nodeid: doc.partition("\n")[0] for nodeid, doc in docs.items()}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
            print(report.longreprtext, flush=True)
        figures = dict(report.user_properties).get("figures", {})
        if report.when == "teardown" and (figures or report.nodeid in self.failed):
            counts = ", ".join(f"{name} {count:,}" for name, count in figures.items())
            verdict = "FAIL" if report.nodeid in self.failed else "PASS"
            print(f"{verdict}  {self.titles[report.nodeid]}\n      {counts}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="share of the full counts (default: 1)")
    options, more = parser.parse_known_args()
    files = [str(TESTS / "test_reliability.py"), str(TESTS / "training/test_matrix.py")]
    unlimited = ["--timeout=0", "-o", "session_timeout=1e6", "-o", "addopts=", "-p", "no:terminal"]
    status = pytest.main([*files, f"--full={options.share}", *unlimited, *more], plugins=[Table()])
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        print(f"no proof matches: -k takes names of tests in {' and '.join(files)}")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
