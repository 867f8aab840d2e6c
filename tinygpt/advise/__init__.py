"""`tinygpt advise`: which model suits a person's own labelled examples, and how good is it really?"""
