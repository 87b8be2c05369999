"""Which machine this is and what fits it. Knows level 0 only; torch is imported late, and may be missing."""
