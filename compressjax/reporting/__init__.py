"""What a compression did, measured and shown: tables in a terminal and one HTML page."""
