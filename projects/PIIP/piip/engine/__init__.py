"""What all tasks share: training, checkpoints, data loading, and PIIP as a backbone of Detectron2."""
