"""`tinygpt lab`: experiments that measure what a course claims, on this machine, and say what follows.

A lab is a list of stages (stages.py). Each stage runs commands of tinygpt or measures a model, and stores its result at
once, so a lab that was stopped continues with the stage it was in. At the end, the results become a table, a picture
and a verdict.

    command.py     the command, and what all labs have in common: the folder, the table, the end
    lab.py         what a lab is
    stages.py      run each stage once, with the expected time
    processes.py   the trainings of a lab, as processes of their own
    models.py      write a lab's own datasets, and ask its models
    summary.py     the tables, the picture, the verdicts and the page of a lab
    facts/         lab facts: retrieve, fine-tune or train?
    methods.py     lab methods: what methods of fine-tuning gain, forget and cost
    labels.py      lab labels: how many labels does a task need, and how accurate must they be?
    reports.py     lab reports: style from a small adapter, and fidelity
    domain.py      lab domain: does pretraining on text of one's own field help?
    drift.py       lab drift: what accuracy do new merchants cost, and what restores it?
    confidence.py  lab confidence: does a fine-tuned model know that it does not know?
    canary.py      lab canary: what a model memorises of its training text
    arithmetic.py  lab arithmetic: sums as long as those in training, and longer
    cascade.py     lab cascade: n-gram baseline, tiny model, pretrained model, person
    scale.py       lab scale: how the loss depends on the size of a model and the length of its training

    tinygpt lab                      # lists the labs
    tinygpt lab methods --seeds=1
"""
