"""Configuration: the keys of each command, and how files and flags set them.

    config = parse(TrainConfig, ["configs/shakespeare_char.yaml", "--device=cpu"])

The package imports only errors and files from tinygpt.
"""
