"""Relations between pixels: how alike each anchor is to each key, and queues of keys from earlier batches."""
