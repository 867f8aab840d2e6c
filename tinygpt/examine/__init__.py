"""The commands that examine a run: eval, doctor, report and why; and the mechanism of experiments."""
