"""Measure a trained model, and judge a run.

    loss.py         mean loss of a model on a split, in nats per token
    baselines.py    losses of n-gram models on the same targets
    classify.py     labelled tasks: probabilities of labels, metrics, calibration
    share.py        the interval of a share, right for small counts
    threshold.py    tasks with a rare label: precision, recall, and the threshold with the lowest cost
    respond.py      tasks with free text: greedy responses, exact match, and the checks of a task
    command.py      `tinygpt eval`
    doctor.py       `tinygpt doctor`: the verdict on a run's curves
    check.py        `tinygpt check`: integrity of folders, exactness of resuming; what can be done with a model
    plot.py         `tinygpt plot`: loss curves as a PNG, or for TensorBoard
    forecast.py     plan.json, and the predictions next to the results
    law.py          a scaling law: loss as a function of parameters and training tokens
    process.py      a command as a child process; peak memory

The package imports training, checkpoint, data and the modules below them. `train` imports loss.py and doctor.py.

    mean_loss(model, source, source.every(block_size), compute)
"""
