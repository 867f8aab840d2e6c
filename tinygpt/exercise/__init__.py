"""Write a GPT yourself, in ten steps with checks.

    command.py      `tinygpt exercise`: list the steps, start one, check a file
    folder.py       check a folder of students' files, and write a CSV file
    outline.py      number, title and template of each step
    template.py     the ten steps as a student gets them
    runner.py       child processes that run the checks, with a time limit
    child.py        such a process: it runs the checks of a file, and reports the results
    steps.py        the checks of each step

The package imports config, errors, files, model and terminal.

    tinygpt exercise start 1
"""
