"""In: the folder of a finished or a running training run. Out: one commit in a repository of the Hugging Face Hub."""
