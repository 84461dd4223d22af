"""The two halves of Knowledge Tailoring: of logits with the labels' help, and of features by channel correlation."""
