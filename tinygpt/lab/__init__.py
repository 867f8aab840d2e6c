"""`tinygpt lab`: experiments that measure what a course claims, on this machine, and say what follows.

A lab is a list of stages (stages.py). Each stage runs commands of tinygpt or measures a model, and stores its result at
once, so a lab that was stopped continues with the stage it was in. At the end, the results become a table, a picture
and a verdict (summary.py). models.py trains and asks the models, and each lab is a module or a package.

    tinygpt lab                      # lists the labs
    tinygpt lab methods --seeds=1
"""
