"""What came out of runs: manifests, tables, curves, pictures, a page. Nothing is loaded here."""
