"""Configuration: what can be set, files and flags that set it, and the commands that messages suggest."""
