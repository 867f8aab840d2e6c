"""Write a GPT yourself: ten steps with checks."""
