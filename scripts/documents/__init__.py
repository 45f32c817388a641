"""What `evidence.py` and `model_cards.py` write from the records in model_cards/: pages, tables, and the statistics."""
