"""What a run and a comparison leave."""
