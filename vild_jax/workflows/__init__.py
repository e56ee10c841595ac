"""Python functions behind the commands: each opens folders and files, checks them, runs the task, and writes."""
