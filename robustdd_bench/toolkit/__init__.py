"""Parts for authors of methods: seeds, augmentation, experts, exact unrolling, distances."""
