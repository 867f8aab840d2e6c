"""Write a GPT yourself, in ten steps with checks.

    command.py      `tinygpt exercise`: list the steps, start one, check one
    template.py     the ten steps as a reader gets them
    steps.py        the checks of each step, run in a process of their own

The package imports config, errors, files and model.

    tinygpt exercise start 1
"""
