"""Tree search with an ask-tell interface; it makes no model calls itself."""
