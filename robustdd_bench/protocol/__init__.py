"""What a track fixes: data, networks, preprocessing and the rules of evaluation."""
