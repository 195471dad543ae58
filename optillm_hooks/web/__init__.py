"""Web pages: the links in a text, safe download, and the text of a page."""
