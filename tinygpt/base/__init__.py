"""What every part of tinygpt stands on: errors, terminal, files, threads, devices, intervals, configurations.

It imports nothing else of tinygpt; process.py runs commands in child processes.
"""

__version__ = "0.6.0"
