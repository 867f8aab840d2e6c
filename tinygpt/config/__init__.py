"""Configuration: what can be set, and how files and flags set it.

fields.py   the types of keys, their limits and marks
schema.py   one dataclass per command: keys, defaults, help
files.py    config files: YAML, or Python in nanoGPT's style, which is parsed and never executed
parse.py    from files and flags to a checked config; --help
suggest.py  the commands that messages suggest

    config = parse(TrainConfig, ["configs/shakespeare_char.yaml", "--device=cpu"])

It imports from tinygpt only errors and files.
"""
