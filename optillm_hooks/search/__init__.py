"""Tree search with an ask-tell interface, without model calls."""
