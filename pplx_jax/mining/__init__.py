"""Mining of hard negatives: pairs to triplets."""
