"""What surrounds the training loop: set-up, optimizer, device, processes, signals and the log."""
