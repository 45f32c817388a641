"""In: the command line, a YAML file or a recipe's name.

Out: one checked dataclass of options for a command, without loading torch.
"""
