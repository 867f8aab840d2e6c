"""What surrounds the training loop of train.py.

    start.py        where a run starts: from nothing, from a base model, from its own last state
    run.py          a run and everything it needs, set up and saved
    build.py        plain PyTorch or the fast path: the one place that chooses
    optimizer.py    AdamW and Muon out of torch.optim, and an optimizer's state by parameter name
    schedule.py     the learning rate as a function of the iteration
    device.py       device and precision, and what differs between platforms
    processes.py    several processes under torchrun
    signals.py      stopping politely
    log.py          metrics.jsonl, the progress bar, the speed
    failures.py     what a run says when it cannot go on

The package imports checkpoint, data, fast, model and what they import.

    run = open_run(stack, config, compute, starting_point(config), Method())
"""
