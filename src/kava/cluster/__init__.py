"""Jobs for a scheduler: what they are, their scripts, their ids and states. Needs no torch: it works on a login node."""
