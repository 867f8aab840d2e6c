"""The commands that examine a run: plan, eval, doctor, report and why; and the mechanism of experiments."""
