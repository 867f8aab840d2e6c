"""Checkpoints: reading and writing them, adapters, and checks of their integrity."""
