"""The commands for learning: quickstart, lab and exercise."""
