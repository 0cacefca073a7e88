"""In which order the stages run, and the `winnow` command."""
