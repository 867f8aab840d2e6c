"""Experiments that a person can stop and continue: `tinygpt lab` and `tinygpt advise`.

An experiment has stages (stages.py), each of which measures a case. Its result is stored at once. At the end the
results become tables and verdicts (summary.py), and a picture (picture.py).
"""
