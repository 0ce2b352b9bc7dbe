"""A Kafka topic as a source of lines: its address, the client, and who reads which partition."""
