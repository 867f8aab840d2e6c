"""Write a GPT yourself, in ten steps with checks.

tinygpt exercise start 1
"""
