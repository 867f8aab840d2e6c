"""The verdict's rule on recorded curves, and the command that speaks it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import cli_here, listing

from tinygpt.doctor import Verdict, judge

SETTINGS = {"max_iters": 2000, "eval_interval": 250, "learning_rate": 1e-3, "eval_iters": 20}
