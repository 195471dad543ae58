"""What is kept after a request: notes, cached texts and strategies, in SQLite or PostgreSQL."""
