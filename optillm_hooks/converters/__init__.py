"""Converters of OptiLLM's configuration files into LiteLLM's YAML."""
