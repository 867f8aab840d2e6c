"""`tinygpt lab facts`: retrieve, fine-tune or train? Measured, and then a tenth of the facts change.

world.py        invented companies, documents about them, and questions
systems.py      what answers the questions: baselines, retrieval with a reader, closed-book models
experiment.py   the stages: build each system, ask, change facts, bring each system up to date, ask again
summary.py      what the answers say: tables, a picture and verdicts
live.html.j2    the part of the page in which the tiny models answer; page.js works it
search.js       the passages, BM25 and the reader's prompt in plain JavaScript

tinygpt lab facts --quick
"""

from tinygpt.lab.facts.experiment import live, stages
from tinygpt.lab.facts.summary import summarise
from tinygpt.lab.stages import Lab

ABOUT = "retrieve, fine-tune or train: what each knows, and what a change of facts costs"
LAB = Lab(ABOUT, stages, summarise, models=("pretrained",), others=("price",), live=live, quick=True)
