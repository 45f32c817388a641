"""In: a trained classifier and, optionally, a dataset for examples and a masked autoencoder.

Out: a web app that classifies uploaded images, served locally or written as a Hugging Face Space.
"""
