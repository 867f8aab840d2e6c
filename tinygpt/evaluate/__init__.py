"""Measure a trained model, and judge a run.

mean_loss(model, source, source.every(block_size), compute)
"""
