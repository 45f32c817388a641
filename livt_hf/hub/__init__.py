"""In: the folder of a saved model, or the checkpoints of a run in progress.

Out: one commit per upload in a repository of the Hugging Face Hub, with the files checked beforehand.
"""
