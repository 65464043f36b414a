"""From a folder of annotated pictures to a trained model: find, inspect, choose, train, report."""
