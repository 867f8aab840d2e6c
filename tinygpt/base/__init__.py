"""What every part of tinygpt stands on: errors, terminal, files, threads, devices, processes and configurations.

It imports nothing else of tinygpt.
"""

__version__ = "0.6.0"
