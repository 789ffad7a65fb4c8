"""What the experiments share: options, findings, output, figures, training, tasks."""
