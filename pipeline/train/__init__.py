"""Stage `train`: the one loop, augmentation, changes of low rank, merging."""
