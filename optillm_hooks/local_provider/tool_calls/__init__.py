"""Tool calls in the models' own formats: detection, parsing of streamed replies, grammars."""
