"""How good a model is: losses, n-gram baselines, classification, the verdict on a run."""
