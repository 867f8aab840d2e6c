"""`tinygpt eval`: measure a trained model, and compare it with baselines.

command.py measures losses; classify.py, confusion.py and respond.py measure tasks; baselines.py and classifiers.py are
what it is compared with.
"""
