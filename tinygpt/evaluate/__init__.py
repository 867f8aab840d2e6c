"""Measure a trained model, and judge a run.

The package imports training, checkpoint, data and the modules below them. `train` imports loss.py and doctor.py.

    mean_loss(model, source, source.every(block_size), compute)
"""
