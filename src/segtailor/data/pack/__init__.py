"""A data set repacked once for fast reading: images and class indices in tar shards, with an index beside each."""
