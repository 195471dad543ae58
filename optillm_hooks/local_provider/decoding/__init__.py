"""The engine's side of each decoding method: the branches that its rows follow."""
