"""`tinygpt lab`: experiments that measure what a course claims, on this machine, and say what follows.

A lab is a module or a package that ends with its entry LAB (definition.py). Its stages run as those of any experiment
(tinygpt/examine/experiment).
"""
