"""In: a dataset. Out: its class distribution, its unreadable images, or a resized copy of it."""
