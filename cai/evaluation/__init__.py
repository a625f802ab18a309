"""What came of training: answers before and after, judged."""
