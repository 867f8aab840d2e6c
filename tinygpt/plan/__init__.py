"""`tinygpt plan`: predict time, memory and loss of a training run from short pilot runs on this machine.

tinygpt plan configs/shakespeare_char.yaml --device=cpu
"""
