"""Configuration: the keys of each command, and how files and flags set them.

The commands of the core are in core.py, the others in the module of their group. `parse.parse` makes a config, and
refuses a value of the wrong type; `fields.Config.problems` refuses one beyond its limits. `parse.find_config` finds
presets by name.

    config = parse(TrainConfig, ["configs/shakespeare_char.yaml", "--device=cpu"])
"""
