"""Worker processes for text that a model wrote: `client` asks, `zygote` forks, `worker` answers."""
