"""The metrics as modules of the `evaluate` library, which expects one folder for each."""
