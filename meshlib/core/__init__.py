"""The decisions: frozen values in, actions out. No I/O, clock, dice, threads, protobuf or YAML.

Start reading at `outbound.py`: one outgoing request, step by step, in order.
"""
