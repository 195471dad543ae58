"""Finding what matters in long texts: chunks that fit a model, and the relevance of texts."""
