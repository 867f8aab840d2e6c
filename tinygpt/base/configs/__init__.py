"""Configuration: the keys of each command (run.py, and a module for each group of commands), and how files and flags
set them.

    config = parse(TrainConfig, ["configs/shakespeare_char.yaml", "--device=cpu"])
"""
