"""Small parts that all of the host layer uses: messages, options, storage, memory."""
