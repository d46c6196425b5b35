"""The engine and its server. In: programs, as operations on token ids (`client` and `lower` make them from text). Out:
events. `engine` is the loop, `scheduler` plans its steps, `runner` computes them; `server` speaks HTTP in front of it.
"""
