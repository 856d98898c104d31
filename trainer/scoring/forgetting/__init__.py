"""What a fine-tuned model still knows and says: general questions and texts, before and after."""
