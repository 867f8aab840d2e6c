"""`tinygpt why`: the training examples that raised or lowered the probability of an output, proved by retraining."""
