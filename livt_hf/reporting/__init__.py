"""In: results as plain dictionaries and arrays. Out: charts, reports in Markdown and HTML, and model cards."""
