"""The checks of the ten steps, as tests for pytest: properties of a correct solution, on small inputs.

`tinygpt exercise check` runs them through runner.py. To run them directly, with pytest's own options:

    python -m pytest -p tinygpt.learn.exercise.child --pyargs tinygpt.learn.exercise.steps --file my_gpt.py -k step04

Step 4 is test_step04.py. The fixture `my` is the student's module (child.py). Any code that does what the
template's docstrings say passes.
"""
