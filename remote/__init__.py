"""Works on one host over SSH, its files, jobs and set-up; knows no cloud and no training."""
