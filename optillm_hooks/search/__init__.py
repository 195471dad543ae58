"""Tree search without model calls: a search says what to try, and is told what it was worth."""
