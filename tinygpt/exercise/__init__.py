"""Write a GPT yourself, in ten steps with checks.

The package imports config, errors, files, model and terminal.

    tinygpt exercise start 1
"""
