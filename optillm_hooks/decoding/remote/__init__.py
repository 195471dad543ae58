"""Decoding methods over a model that others serve: what log-probabilities and prefixes allow.

Pure functions and settings are those of `decoding`; here is how each method is made
of calls. Source of the calls' form: the chat APIs of vLLM and SGLang (`continue_final_message`).
"""
