"""Numbers alone: intervals, tests, calibration, agreement, win rates."""
