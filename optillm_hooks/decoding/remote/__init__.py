"""Decoding methods over chat APIs, by calls with log-probabilities and continued prefixes.

Settings and pure functions of each method are in `decoding`. The calls use the fields that the chat
APIs of vLLM and SGLang have in common (`continue_final_message`).
"""
