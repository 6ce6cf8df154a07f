"""Jobs and rounds over peers. Imports p2p only; its doors are in seams.py."""
