"""`tinygpt lab facts`: retrieve, fine-tune or train? Measured, and then a tenth of the facts change.

live.html.j2 is the part of the page in which the tiny models answer, and page.js works it; search.js has the passages,
BM25 and the reader's prompt in plain JavaScript.
"""

from tinygpt.learn.lab.definition import Lab
from tinygpt.learn.lab.facts.experiment import live, stages
from tinygpt.learn.lab.facts.summary import summarise

LAB = Lab(
    "retrieve, fine-tune or train: what does a change of facts cost?",
    stages,
    summarise,
    models=("pretrained",),
    live=live,
    quick=True,
)
