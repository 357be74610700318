"""What `embed` reads and writes: rows of files, their division into shards, and the folder of vectors."""
