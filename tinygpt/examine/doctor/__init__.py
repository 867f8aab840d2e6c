"""`tinygpt doctor`: command.py prints the verdict on a run, files.py checks files."""
