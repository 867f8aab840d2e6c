"""`tinygpt why`: the training examples that changed an output, estimated (influence.py), proved by retraining.

explained.py loads the run and the output.
"""
