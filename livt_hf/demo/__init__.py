"""In: a trained classifier.

Out: a web page that classifies uploaded images, served locally or written as a Hugging Face Space.
"""
