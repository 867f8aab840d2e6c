"""`tinygpt plan`: command.py prints the prediction, cost.py measures steps, memory.py computes several processes."""
