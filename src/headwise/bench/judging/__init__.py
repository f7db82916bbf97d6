"""What results say: intervals, verdicts beside baselines of equal bytes, two results side by side."""
