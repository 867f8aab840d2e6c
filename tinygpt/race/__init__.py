"""`tinygpt race`: a competition for a class, in which each config gets the same budget of computing time.

tinygpt race submissions --text text.txt
"""
