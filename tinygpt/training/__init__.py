"""Everything that surrounds the training loop of train.py.

The package imports checkpoint, data, fast, model and their imports.

    run = set_up(stack, start, choose_compute(start.config, start.saved))
"""
