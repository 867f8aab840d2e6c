"""`tinygpt eval`: measure a trained model, and compare it with baselines.

tinygpt eval out --task transactions
"""
