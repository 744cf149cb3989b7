"""Driving scenes: vector maps, trajectories, their features, and a generator of synthetic ones. NumPy only.

Everything is in metres and seconds in a city's map frame, unless a name says `agent frame`.
"""
