"""`tinygpt doctor`: check the files of runs and datasets and judge the runs, or test this machine."""
