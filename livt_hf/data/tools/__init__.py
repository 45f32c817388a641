"""In: a loaded dataset. Out: its class distribution, its unreadable and duplicate images, or a resized copy of it."""
