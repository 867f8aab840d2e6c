"""`tinygpt advise`: which model suits a person's own labelled examples, and how good is it really?

The examples pass through `look.py`, `split.py`, `contenders.py` and `judge.py`. The winner is kept (`labeller.py`), and
`tinygpt label` uses it.
"""
