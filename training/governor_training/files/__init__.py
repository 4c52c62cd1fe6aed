"""An agent that works in a tree of configuration files: long results, and a tool that writes."""
