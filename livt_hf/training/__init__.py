"""In: the options of a stage.

Out: a folder with the trained model, log, checkpoints and record of the run, and after fine-tuning its evaluation.
"""
