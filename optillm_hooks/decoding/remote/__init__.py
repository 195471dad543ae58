"""Decoding methods over a model behind an API, made of calls with log-probabilities and prefixes.

Each method's settings and pure functions are in `decoding`. The calls have the form that the chat
APIs of vLLM and SGLang share (`continue_final_message`).
"""
