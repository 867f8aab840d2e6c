"""Measure a trained model, and judge a run.

mean_loss(model, source, source.all_rows(block_size), compute)
"""
