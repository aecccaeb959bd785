"""Our code and the peers', measured in turn in one run; filled by the speed issue."""
