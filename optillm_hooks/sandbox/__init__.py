"""Worker processes for text that a model wrote: `client` starts them, `worker` runs inside."""
