"""Constraints: compiled before admission in a process that can be killed, followed token by token in the engine."""
