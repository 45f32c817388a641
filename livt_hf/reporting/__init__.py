"""In: results as dictionaries and images as arrays.

Out: charts, evaluation and comparison reports in Markdown and HTML, and model cards.
"""
