"""Everything that surrounds the training loop of train.py.

A run starts in start.py (configuration, checkpoint) and run.py (model, optimizer, folder). optimizer.py has the
schedule of the learning rate and clips gradients, losses.py evaluates, log.py writes metrics.jsonl, processes.py joins
processes and notices signals, verdict.py judges the run; tuning.py and compare.py belong to fine-tuning.

run = set_up(stack, resolve(stack, config))
"""
