"""Where episodes come from: recorded datasets on disk, and simulated tasks with language, success and experts."""
