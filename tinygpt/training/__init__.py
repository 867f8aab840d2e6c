"""Everything that surrounds the training loop of train.py.

    start.py        where a run starts: checkpoint, configuration, device, model
    tuning.py       what fine-tuning adds: LoRA adapters, replay
    run.py          a run: set-up, state, checkpoints, the errors that end it
    optimizer.py    the learning rate of an iteration; AdamW and Muon; an optimizer's state by parameter name
    processes.py    several processes under torchrun, and graceful shutdown
    log.py          metrics.jsonl, the progress bar, the speed
    watch.py        `--watch`: the child process that serves the page of a run
    sinks.py        Weights & Biases, TensorBoard

The package imports checkpoint, data, fast, model and their imports.

    run = set_up(stack, start, choose_compute(start.config, start.saved))
"""
