"""Configuration: the keys of each command, and how files and flags set them.

fields.py   the base class of configurations, their keys, and the limits of these
schema.py   one dataclass per command: keys, types, defaults, help
parse.py    from files and flags to a checked config; --help
suggest.py  the commands that messages suggest

    config = parse(TrainConfig, ["configs/shakespeare_char.yaml", "--device=cpu"])

The package imports only errors and files from tinygpt.
"""
