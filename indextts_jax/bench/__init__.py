"""How long every stage takes, beside what the machine could do: the pipeline itself, timed at its seams.

The chain runs as users run it, on random recordings and texts and with as many codes as are asked for; every jitted
stage is a seam, where its first call gives the seconds of compilation and every later one those of running. A stage's
floor is the larger of two times: its products at the machine's measured matrix rate, and the bytes it cannot avoid
moving at the machine's measured bandwidth.
"""
