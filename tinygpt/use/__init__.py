"""The commands that use a model: ask, advise, label and serve."""
