"""Research on the web: sources that were read, notes with quotations, a report with citations."""
