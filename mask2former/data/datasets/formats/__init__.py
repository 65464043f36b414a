"""Reading annotation files of every format: what is right becomes COCO files, what is wrong a list of faults."""
