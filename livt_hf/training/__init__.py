"""In: the options of a stage.

Out: a folder with the trained model, its log, its checkpoints and the record of the run.
"""
