"""Everything that surrounds the training loop of train.py.

    start.py        where a run starts: new weights, a base model, or its own last state
    run.py          a run: set-up, state, checkpoints
    build.py        choose the device, and plain PyTorch or the fast path
    optimizer.py    AdamW and Muon from torch.optim, and an optimizer's state by parameter name
    schedule.py     the learning rate as a function of the iteration
    processes.py    several processes under torchrun
    signals.py      graceful shutdown
    log.py          metrics.jsonl, the progress bar, the speed
    watch.py        `--watch`: the child process that serves the page of a run
    sinks.py        Weights & Biases, TensorBoard
    failures.py     errors that end a run

The package imports checkpoint, data, fast, model and their imports.

    run = open_run(stack, config, compute, starting_point(config), Method())
"""
