"""The metrics in the form of the `evaluate` library, one folder each (the layout that `evaluate` expects)."""
