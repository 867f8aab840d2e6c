"""The report of a run: one HTML file in which the model itself answers."""
