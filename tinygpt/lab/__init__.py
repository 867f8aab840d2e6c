"""`tinygpt lab`: experiments that measure what a course claims, on this machine, and say what follows.

A lab is a module or a package with stages (stages.py), which run commands of tinygpt or measure models (models.py). The
result of each is stored at once. At the end they become tables, a picture and verdicts (summary.py).
"""
