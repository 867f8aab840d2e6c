"""What every part of tinygpt stands on: errors, terminal, files, threads, devices, processes and configurations.

It imports nothing else of tinygpt.
"""
