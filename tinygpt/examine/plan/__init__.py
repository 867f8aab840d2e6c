"""`tinygpt plan`: predict time and memory of a training run on this machine.

tinygpt plan configs/shakespeare_char.yaml --device=cpu
"""
