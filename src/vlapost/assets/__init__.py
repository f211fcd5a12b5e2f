"""Bodies, table pictures and robot of the benchmark: asset packs on disk, and a generator for one of them."""
