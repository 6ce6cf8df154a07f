"""Jobs and rounds over peers (later). Imports p2p only; its doors are seams.Mesh and seams.Db."""
