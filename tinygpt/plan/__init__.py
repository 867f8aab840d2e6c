"""`tinygpt plan`: predict time, memory and loss of a training run from short pilot runs on this machine.

command.py   the command: its stages, what it prints, plan.json
cost.py      the time pilot: what each part of a run costs, and what the whole run takes
pilots.py    the loss pilots: complete runs at 1/32, 1/16 and 1/8 of the length
choose.py    --budget and --target: the model size that a scaling law recommends
fit.py       a power law through the pilots' losses, extended to the complete run

tinygpt plan configs/shakespeare_char.yaml --device=cpu
"""
