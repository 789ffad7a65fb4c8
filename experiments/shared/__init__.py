"""What the experiments share: options, findings, output, timing, figures, training, tasks."""
