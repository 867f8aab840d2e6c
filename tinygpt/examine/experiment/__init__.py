"""Experiments that a person can stop and continue: `tinygpt lab` and `tinygpt advise`.

An experiment has stages (stages.py), which run commands of tinygpt or measure models (models.py). The result of each is
stored at once. At the end they become tables, a picture and verdicts (summary.py).
"""
