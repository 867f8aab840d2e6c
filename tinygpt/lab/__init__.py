"""`tinygpt lab`: experiments that measure what a course claims, on this machine, and say what follows.

A lab is a list of stages (stages.py). Each stage runs commands of tinygpt or measures a model, and stores its result at
once, so a lab that was stopped continues with the stage it was in. At the end, the results become a table, a picture
and a verdict.

    command.py     the command, and what all labs have in common: the folder, the table, the end
    lab.py         what a lab is
    stages.py      run each stage once, with the expected time
    processes.py   run a command of tinygpt as a process of its own, and measure its seconds and its memory
    models.py      write a lab's own datasets, and ask its models
    summary.py     the tables, the picture, the verdicts and the page of a lab
    facts/         lab facts: retrieve, fine-tune or train?
    methods.py     lab methods: what methods of fine-tuning gain, forget and cost
    labels.py      lab labels: how many labels does one need, and how good must they be?
    reports.py     lab reports: style from a small adapter, and fidelity
    domain.py      lab domain: does a corpus of one's own field help?
    drift.py       lab drift: what do new merchants cost a model, and what repairs it?
    confidence.py  lab confidence: does a fine-tuned model know that it does not know?
    canary.py      lab canary: what a model gives away of its training text
    arithmetic.py  lab arithmetic: sums within and beyond the lengths of training
    cascade.py     lab cascade: n-grams, a tiny model, a pretrained one, a person; each answers what it can

    tinygpt lab                      # lists the labs
    tinygpt lab methods --seeds=1
"""
