"""Everything that surrounds the training loop of train.py.

run = set_up(stack, start, choose_compute(start.config, start.saved))
"""
