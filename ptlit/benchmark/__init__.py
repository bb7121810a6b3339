"""How fast, and against whom: measured side by side on the same rows, once all agree on the result.

Nothing outside this package imports it; PEFT is needed here alone.
"""
