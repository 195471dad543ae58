"""The engine's side of each decoding method: how it decodes each of a request's sequences."""
