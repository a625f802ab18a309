"""Feedback of a model: the critique–revise loop, AI judging, and the filters of what they write."""
